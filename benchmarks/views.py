"""Measures what `teacher.views = K` costs in accuracy and saves in time: one comparison per K, otherwise identical.

    python benchmarks/views.py --recipe FILE [--views 0,1,4,8] [--methods kd,mc-distil] [--seeds 0,1,2] [--threads 1]
        [--folder DIR] [--out benchmarks/results/NAME.json]

Seconds are those of the distillation stage, including the teacher's passes over its views. The cache of views starts
empty; the first run fills it and the following runs read it. Gains are relative to K = 0, seed by seed. With --folder,
the comparisons are stored there, and the same command resumes them. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from deploy import mcd
from joint_step import spread


def compared(args: argparse.Namespace, folder: Path, views: int) -> dict[str, Any]:
    """The content of comparison.json for the methods at one K."""
    changes = ["--set", f"teacher.views={views}", "--out", str(folder / f"views-{views}")]
    shared = ["--recipe", args.recipe, "--methods", args.methods, "--seeds", args.seeds]
    return dict(mcd("compare", *shared, "--threads", str(args.threads), *changes))


def row(contender: dict[str, Any], fresh: dict[str, Any], views: int) -> dict[str, Any]:
    """A method at one K compared with `fresh`, the same method at K = 0."""
    accuracy, seconds = contender["mean"]["values"], contender["seconds"]["values"]
    gains = [100 * (a - b) for a, b in zip(accuracy, fresh["mean"]["values"], strict=True)]
    return {
        "method": contender["name"],
        "views": views,
        "accuracy": [100 * a for a in accuracy],
        "gain": {"mean": mean(gains), "std": stdev(gains) if len(gains) > 1 else None, "values": gains},
        "seconds": seconds,
        "seconds_over_fresh": spread([s / f for s, f in zip(seconds, fresh["seconds"]["values"], strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--views", default="0,1,4,8")
    parser.add_argument("--methods", default="kd,mc-distil")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    counts = [int(views) for views in args.views.split(",")]
    if counts[0] != 0:
        parser.error("--views must start with 0, the baseline; write it like 0,1,4,8")
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place)
        os.environ["MCD_CACHE"] = str(folder / "cache")
        documents = {views: compared(args, folder, views) for views in counts}
    first = documents[0]
    result = {
        "hardware": first["hardware"],
        "python": platform.python_version(),
        "dataset": first["dataset"],
        "teacher": first["teacher"]["arch"],
        "teacher_accuracy": first["teacher"]["accuracy"],
        "students": [student["name"] for student in first["students"]],
        "recipe": first["recipe"],
        "seeds": first["seeds"],
        "rows": [
            row(contender, fresh, views)
            for views, document in documents.items()
            for contender, fresh in zip(document["contenders"], first["contenders"], strict=True)
        ],
    }
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
