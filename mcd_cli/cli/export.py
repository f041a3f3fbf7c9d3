"""`mcd export`: writes students as ONNX files, checked on real images, and prints one path per line."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mcd_cli.errors import GateRefused, UserError, unknown
from mcd_cli.formats.job import ExportJob, export_student, formats_of, kept_exports, load_training_data
from mcd_cli.ladder.folder import EXPORTS, refuse_links
from mcd_cli.ladder.manifest import find_run, load_ladder
from mcd_cli.ladder.variants import FORMATS, INT8, OTHERS
from mcd_cli.reporting.console import print_json, talk

_print_path = partial(print, flush=True)


def export(
    run: str | None = None,
    *,
    format: str = "onnx",
    students: list[str] | None = None,
    out: str | None = None,
    int8: bool = False,
    max_drop: float = 1.0,
    preprocess: bool = True,
    calibrated: bool = False,
    data_root: str | None = None,
    force: bool = False,
    json_output: bool = False,
    show: Callable[[str], None] = _print_path,
) -> list[dict[str, Any]]:
    """Export every student, or those in `students` (`NAME`, or `NAME.int8` for its int8 variant too).

    Returns a record per file: its student, format, path and check. show: is called with each path.

    Files in the run's folder that passed the same check before and are unchanged are kept, unless `force`.

    max_drop: accuracy on val that int8 may lose, in percentage points. calibrated: the files divide their logits by the
    temperature, so that softmax of their output is calibrated. Raises GateRefused after the last student if
    a file does not compute what its model does, or if int8 loses more.
    """
    others = _others(format)
    if others and not preprocess:
        raise UserError(f"--no-preprocess is for onnx; export {', '.join(others)} without it")
    if not 0 <= max_drop <= 100:
        raise UserError(f"--max-drop {max_drop:g} must be between 0 and 100 percentage points")
    folder = find_run(run)
    ladder = load_ladder(folder)
    variants = [ladder.variant(name) for name in dict.fromkeys(students or [s.name for s in ladder.students])]
    bare = [variant.student.name for variant in variants if calibrated and variant.student.calibration is None]
    if bare:
        raise UserError(
            f"--calibrated: no temperature was fitted for {', '.join(bare)} (the run is of an older mcd, or trained on "
            "val); export without it"
        )
    as_int8 = {variant.student.name for variant in variants if int8 or variant.format == INT8}
    target = _writable(folder, out)
    drop = max_drop / 100
    chosen = {variant.student.name: variant.student for variant in variants}
    kept = {
        name: kept_exports(student, [*formats_of(preprocess, name in as_int8), *others], calibrated, drop)
        if out is None and not force
        else []
        for name, student in chosen.items()
    }
    say = talk().print
    job = None
    if not all(kept.values()):
        dataset = load_training_data(ladder, folder, data_root, say)
        job = ExportJob(ladder, folder, dataset, target, out is None, preprocess, calibrated, drop, say, others)
    written: list[dict[str, Any]] = []
    refused: list[str] = []
    for name, student in chosen.items():
        if kept[name]:
            say(f"{name}: exported before, and unchanged; --force exports it again")
        records = kept[name] or (export_student(job, student, name in as_int8, refused) if job else [])
        for record in records:
            written.append(record)
            if not json_output:
                show(record["path"])
    if json_output:
        print_json({"run": str(folder), "exports": written, "refused": refused})
    if refused:
        raise GateRefused(f"{'; '.join(refused)}; these files were not written")
    return written


def _others(format: str) -> tuple[str, ...]:
    """The formats of "onnx,openvino" beside ONNX, which is always written, as the others are made from it."""
    names = [name.strip() for name in format.split(",")]
    for name in names:
        if name not in ("onnx", *OTHERS):
            raise unknown("format", name, ("onnx", *OTHERS))
        package = FORMATS[name].package
        if find_spec(package) is None:
            raise UserError(f"--format {name} needs the package {package}: pip install 'mcd-cli[{name}]'")
    return tuple(dict.fromkeys(name for name in names if name in OTHERS))


def _writable(folder: Path, out: str | None) -> Path:
    """The folder for the files, which is created later; raises UserError early if that will fail."""
    if out == "":
        raise UserError("--out is empty; name a folder")
    if out is None:
        refuse_links(folder)
    target = folder / EXPORTS if out is None else Path(out)
    hint = "choose another --out" if out else "name a folder with --out"
    place = next(path for path in (target, *target.absolute().parents) if path.exists() or path.is_symlink())
    if not place.is_dir():
        raise UserError(f"{place} is a file, not a folder; {hint}")
    for needed in [place] if out else [place, folder]:  # the manifest is rewritten too
        if not os.access(needed, os.W_OK | os.X_OK):
            raise UserError(f"{needed} is read-only; {hint}")
    return target
