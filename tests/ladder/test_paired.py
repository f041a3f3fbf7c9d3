"""The distance of two students on the same images, against numpy, and the predictions that a real run stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.paired import Gap, correct_on_val


def test_a_gap_is_that_of_paired_differences() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.random(5000) < p for p in (0.7, 0.75))
    gap = Gap.between(a.astype(np.uint8).tobytes(), b.astype(np.uint8).tobytes())
    difference = b.astype(float) - a
    assert gap.num == 5000
    assert gap.behind == pytest.approx(difference.mean())
    assert gap.errors == pytest.approx(difference.mean() / np.sqrt((difference**2).mean() / 5000))
    assert Gap.between(b"\1\0", b"\1\0") == Gap(0, 0, 2)
    assert Gap(0, 0, 2).errors == 0


def test_what_a_run_stores_gives_its_accuracies(deployed: Path) -> None:
    ladder = load_ladder(deployed)
    right = correct_on_val(deployed, [student.name for student in ladder.students])
    stored = load_file(deployed / "predictions.safetensors")
    for student in ladder.students:
        assert list(right[student.name]) == (stored["val"] == stored[f"val/best/{student.name}"]).tolist()
        assert sum(right[student.name]) / len(right[student.name]) == student.accuracy.val
