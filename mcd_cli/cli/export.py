"""`mcd export`: students as ONNX files, checked on real images; one path per line on stdout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mcd_cli.errors import GateRefused, UserError, unknown
from mcd_cli.export.job import ExportJob, export_student, load_training_data
from mcd_cli.ladder.folder import EXPORTS, refuse_links
from mcd_cli.ladder.manifest import find_run, load_ladder
from mcd_cli.ladder.variants import INT8
from mcd_cli.reporting.console import print_json, talk

FORMATS = ("onnx",)


def export(
    run: str | None = None,
    *,
    format: str = "onnx",
    students: list[str] | None = None,
    out: str | None = None,
    int8: bool = False,
    max_drop: float = 1.0,
    preprocess: bool = True,
    data_root: str | None = None,
    json_output: bool = False,
) -> None:
    """Export every student, or those named (`NAME`, or `NAME.int8` for its int8 variant too).

    max_drop: points of accuracy on V that int8 may lose. Raises GateRefused at the end, when every student was
    tried, for files that do not compute what the model does and for int8 that loses more.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if not 0 <= max_drop <= 100:
        raise UserError(f"--max-drop {max_drop:g} must lie between 0 and 100 points of accuracy")
    folder = find_run(run)
    ladder = load_ladder(folder)
    variants = [ladder.variant(name) for name in dict.fromkeys(students or [s.name for s in ladder.students])]
    as_int8 = {variant.student.name for variant in variants if int8 or variant.format == INT8}
    target = _writable(folder, out)
    dataset = load_training_data(ladder, folder, data_root, talk().print)
    job = ExportJob(ladder, folder, dataset, target, out is None, preprocess, max_drop / 100, talk().print)
    written: list[dict[str, Any]] = []
    refused: list[str] = []
    for student in {variant.student.name: variant.student for variant in variants}.values():
        for record in export_student(job, student, student.name in as_int8, refused):
            written.append(record)
            if not json_output:
                print(record["path"], flush=True)
    if json_output:
        print_json({"run": str(folder), "exports": written, "refused": refused})
    if refused:
        raise GateRefused(f"{'; '.join(refused)}; no such file is written")


def _writable(folder: Path, out: str | None) -> Path:
    """The folder of the files, made later; raises UserError, before anything is computed, where it cannot be."""
    if out == "":
        raise UserError("--out names no folder")
    if out is None:
        refuse_links(folder)
    target = folder / EXPORTS if out is None else Path(out)
    hint = "name another --out" if out else "write elsewhere: --out DIR"
    place = next(path for path in (target, *target.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        raise UserError(f"{place} is a file, not a folder; {hint}")
    for needed in [place] if out else [place, folder]:  # the manifest is rewritten, too
        if not os.access(needed, os.W_OK | os.X_OK):
            raise UserError(f"{needed} is read-only; {hint}")
    return target
