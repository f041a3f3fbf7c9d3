"""The paper's figures, printed beside ours: Tables 1, 2 and 4 (accuracy, in paper.toml), Table 3 (cost)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcd_cli.recipe.schema import Recipe

FILE = Path(__file__).with_name("paper.toml")  # Tables 1, 2 and 4

Shape = tuple[int, int, int]
SHAPES: dict[str, tuple[Shape, int]] = {
    "CIFAR-100": ((3, 32, 32), 100),
    "Tiny-ImageNet": ((3, 64, 64), 200),
}
# (MACs, params) of each architecture on each data set
TABLE_3 = {
    "resnet10-xxs": (("2 M", "13 K"), ("8 M", "15 K")),
    "resnet10-xs": (("3 M", "28 K"), ("12 M", "31 K")),
    "resnet10-s": (("4 M", "84 K"), ("16 M", "90 K")),
    "resnet10-m": (("16 M", "320 K"), ("64 M", "333 K")),
    "resnet10-l": (("64 M", "1.25 M"), ("255 M", "1.28 M")),
    "resnet10": (("253 M", "4.92 M"), ("1013 M", "5 M")),
    "resnet18": (("555 M", "11.22 M"), ("2221 M", "11.27 M")),
    "resnet34": (("1159 M", "21.32 M"), ("4637 M", "21.38 M")),
}


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """The paper's accuracies in %: student → method."""

    table: int
    teacher_accuracy: float | None
    students: dict[str, dict[str, float]]


def blocks() -> list[dict[str, Any]]:
    """Every block as {table, dataset, teacher, teacher_accuracy or None, methods, students: {arch: {method: %}}}."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    blocks = []
    for block in content["block"]:
        methods = block.get("methods", content["methods"])
        students = {arch: dict(zip(methods, figures, strict=True)) for arch, figures in block["students"].items()}
        blocks.append({"teacher_accuracy": None, **block, "methods": methods, "students": students})
    return blocks


def papers_figures(recipe: Recipe) -> PaperFigures | None:
    """The figures of the block with this data set, teacher and students; None if the paper has no such block.

    Table 4 adds only what Table 1 lacks, because its figures for mc-distil differ from Table 1's.
    """
    here = [b for b in blocks() if b["dataset"] == recipe.dataset and b["teacher"] == recipe.teacher.arch]
    main = next((b for b in here if b["table"] in (1, 2) and _covers(b["students"], recipe)), None)
    if main is None:
        return None
    ablation: Mapping[str, Any] = next((b["students"] for b in here if b["table"] == 4), {})
    students = {}
    for name, arch in recipe.students.items():
        if arch in main["students"]:
            printed = main["students"][arch]
            students[name] = printed | {m: v for m, v in ablation.get(arch, {}).items() if m not in printed}
    return PaperFigures(table=main["table"], teacher_accuracy=main["teacher_accuracy"], students=students)


def _covers(students: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether our students are among the block's (and resnet10-xxxs, which the paper trains but does not print)."""
    ours = set(recipe.students.values())
    return bool(ours & set(students)) and ours <= {*students, "resnet10-xxxs"}


def agrees(value: int, printed: str) -> bool:
    """Whether a printed figure ("4.92 M") equals the value, rounded or truncated to as many digits."""
    digits, unit = printed.split()
    step = {"K": 10**3, "M": 10**6}[unit] // 10 ** len(digits.partition(".")[2])
    return int(digits.replace(".", "")) in (value // step, (2 * value + step) // (2 * step))
