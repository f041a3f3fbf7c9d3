"""The paper's own figures (Tables 1, 2 and 4), to stand beside ours where the setting is one of the paper's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcd_cli.recipe import Recipe

FILE = Path(__file__).parent.parent / "paper.toml"


def blocks() -> list[dict[str, Any]]:
    """Every block as {table, dataset, teacher, teacher_accuracy or None, methods, students: {arch: {method: %}}}."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    found = []
    for block in content["block"]:
        methods = block.get("methods", content["methods"])
        students = {arch: dict(zip(methods, figures, strict=True)) for arch, figures in block["students"].items()}
        found.append({"teacher_accuracy": None, **block, "methods": methods, "students": students})
    return found


def papers_figures(recipe: Recipe) -> dict[str, Any] | None:
    """{teacher_accuracy, table, students: {name: {method: %}}} of the block with this data set, teacher and students.

    None where the paper has no such block. Table 4 adds its mc-distil-nops alone: its mc-distil is not Table 1's.
    """
    here = [b for b in blocks() if b["dataset"] == recipe.dataset and b["teacher"] == recipe.teacher.arch]
    main = next((b for b in here if b["table"] in (1, 2) and _covers(b["students"], recipe)), None)
    if main is None:
        return None
    ablation: Mapping[str, Any] = next((b["students"] for b in here if b["table"] == 4), {})
    students = {}
    for name, arch in recipe.students.items():
        if arch in main["students"]:
            nops = ablation.get(arch, {}).get("mc-distil-nops")
            students[name] = main["students"][arch] | ({} if nops is None else {"mc-distil-nops": nops})
    return {"table": main["table"], "teacher_accuracy": main["teacher_accuracy"], "students": students}


def _covers(students: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether ours are the block's, or some of them (the paper trains resnet10-xxxs, too, and does not print it)."""
    ours = set(recipe.students.values())
    return bool(ours & set(students)) and ours <= {*students, "resnet10-xxxs"}
