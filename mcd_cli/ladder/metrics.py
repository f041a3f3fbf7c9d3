"""metrics.jsonl: how a run went, epoch by epoch, and what its numbers warn of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcd_cli.ladder.folder import METRICS
from mcd_cli.ladder.manifest import Ladder

Record = Mapping[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; empty where there is no such file. Raises ValueError for a torn line."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_metrics(ladder: Ladder) -> list[Record]:
    """The lines of metrics.jsonl, the teacher's own epochs left out; empty where there is no such file."""
    assert ladder.folder is not None
    path = ladder.folder / METRICS
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
            records += [record] if record["stage"] != "teacher" else []
        except (ValueError, KeyError, TypeError):
            break  # cut off by a crash; the lines before it are whole
    return records


def last_of_stage(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each stage's last epoch: students may train one after the other."""
    return list({record["stage"]: record for record in records}.values())


def degenerate(record: Mapping[str, Any]) -> Iterator[str]:
    """C-NET as a learning-rate knob: one line per student whose weights are all alike and at an end.

    Normalised weights have a total that is given: theirs can be alike, but no learning rate.
    """
    if record.get("normalise", "none") != "none":
        return
    for name, student in record["students"].items():
        if "spread" not in student:
            continue
        mean = student["total_weight"] / len(student["weights"])
        spread = max(student["spread"].values())
        if spread < 0.02 and not 0.1 <= mean <= 0.9:
            yield (
                f"C-NET weighs every image alike for {name} (mean near {round(mean)}, spread under 0.02): "
                "it acts as a learning rate; try --set coordinator.normalise=image"
            )
