"""Keeps a comparison's finished cells in a few small files, so that another machine can continue it.

    python benchmarks/keep_cells.py pack COMPARISON KEPT
    python benchmarks/keep_cells.py unpack KEPT COMPARISON

`pack` writes one archive per finished cell to KEPT (recipe, metrics, manifest, predictions, times; no weights), and
one per shared warm start, and the plan. Archives that exist are left as they are, so that it can run after every cell.
`unpack` restores all of it in a new or partly trained folder; cells that are there already stay. Then
`mcd compare --resume COMPARISON` trains what is missing and writes the tables. Exit code 1: nothing was found.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

from mcd_cli.comparison.cells import BORROWED, CELLS, SECONDS
from mcd_cli.comparison.plan import PLAN
from mcd_cli.comparison.shared import SHARED
from mcd_cli.ladder.folder import MANIFEST, METRICS, PREDICTIONS, RECIPE
from mcd_cli.ladder.metrics import WARM_START

CELL_FILES = (RECIPE, METRICS, PREDICTIONS, SECONDS, BORROWED, MANIFEST)  # the manifest last: it says "finished"
ENDING = ".tar.xz"


def pack(comparison: Path, kept: Path) -> list[Path]:
    """Archive what is finished; returns the new archives."""
    kept.mkdir(parents=True, exist_ok=True)
    groups = {
        folder.name: [folder / name for name in CELL_FILES if (folder / name).is_file()]
        for folder in sorted((comparison / CELLS).glob("*"))
        if (folder / MANIFEST).is_file()
    }
    groups |= {file.stem: [file] for file in sorted((comparison / SHARED).glob(f"{WARM_START}-*.safetensors"))}
    written = []
    for name, files in groups.items():
        archive = kept / f"{name}{ENDING}"
        if archive.exists():
            continue
        unfinished = archive.with_suffix(".part")
        with tarfile.open(unfinished, "w:xz") as tar:
            for file in files:
                tar.add(file, arcname=str(file.relative_to(comparison)), filter=_anonymous)
        unfinished.rename(archive)
        written.append(archive)
    if groups:
        shutil.copyfile(comparison / PLAN, kept / PLAN)
    return written


def unpack(kept: Path, comparison: Path) -> list[str]:
    """Restore the archives whose files are missing; returns the names of the files restored."""
    comparison.mkdir(parents=True, exist_ok=True)
    if not (comparison / PLAN).exists():
        shutil.copyfile(kept / PLAN, comparison / PLAN)
    restored: list[str] = []
    for archive in sorted(kept.glob(f"*{ENDING}")):
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            if (comparison / members[-1].name).exists():
                continue
            for member in members:
                tar.extract(member, comparison, filter="data")
            restored += tar.getnames()
    return restored


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if not (arguments.source / PLAN).is_file():
        sys.exit(f"{arguments.source} holds no {PLAN}")
    done = (pack if arguments.action == "pack" else unpack)(arguments.source, arguments.target)
    print("\n".join(map(str, done)) or "nothing new")


if __name__ == "__main__":
    main()
