"""`mcd export`: students as ONNX files, gated on real images; one path per line on stdout."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from mcd_cli.console import print_json, talk
from mcd_cli.errors import UserError, unknown
from mcd_cli.ladder import find_run, load_ladder
from mcd_cli.recipe import load_recipe

FORMATS = ("onnx",)
NUM_JUDGED = 512  # images of V


def export(
    run: str | None = None,
    *,
    format: str = "onnx",
    students: list[str] | None = None,
    out: str | None = None,
    json_output: bool = False,
) -> None:
    """Export every student, or those named. Raises GateRefused when a file does not compute what the model does."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    folder = find_run(run)
    ladder = load_ladder(folder)
    chosen = [ladder.student(name) for name in students or [s.name for s in ladder.students]]

    from mcd_cli.data import load_dataset
    from mcd_cli.data.loader import plain
    from mcd_cli.export import export_onnx

    recipe = load_recipe(str(folder / "recipe.toml"), {})
    console = talk()
    dataset = load_dataset(
        recipe.dataset,
        data_root=recipe.data_root,
        image_size=recipe.image_size,
        split_seed=recipe.split_seed,
        report=console.print,
    )
    if dataset.fingerprint != ladder.dataset.fingerprint:
        raise UserError(f"the data set {recipe.dataset} is not the one that {folder} was trained on")
    judged = dataset.val[:NUM_JUDGED]
    images, labels = plain(dataset.images[judged]), dataset.labels[judged]
    target = Path(out) if out else folder / "exports"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for student in chosen:
        path = target / f"{student.name}.{format}"
        metadata = {
            "classes": list(ladder.dataset.classes),
            "input_shape": list(ladder.dataset.input_shape),
            "mean": list(ladder.dataset.mean),
            "std": list(ladder.dataset.std),
            "accuracy": asdict(student.accuracy),
            "macs": student.macs,
            "recipe_sha256": ladder.recipe_sha256,
        }
        gate = export_onnx(student.load(), images, labels, path, metadata)
        console.print(f"{student.name}: {gate}")
        written.append({"student": student.name, "path": str(path), "gate": asdict(gate)})
        if not json_output:
            print(path)
    if not out:
        names = {student.name for student in chosen}
        entries = tuple(
            replace(s, exports=s.exports | {format: f"exports/{s.name}.{format}"}) if s.name in names else s
            for s in ladder.students
        )
        replace(ladder, students=entries).save(folder)
    if json_output:
        print_json({"exports": written})
