"""metrics.jsonl: what is written is what was written before, and what older or killed runs have left is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcd_cli.errors import UserError
from mcd_cli.ladder.metrics import EpochRecord, StudentRecord, read_metrics
from support.manifests import GOLDEN

ONES = {"alpha": 1.0}
STUDENT = StudentRecord(train_accuracy=0.5, losses=ONES, weights=ONES, total_weight=1.0, val_accuracy=0.25)
DAMAGED = [b"", b"junk", b"[]", b'{"stage": "distill"}', b"[" * 100_000, b"\xff", b"\xe2\x80\xa8"]


def test_the_bytes_are_those_of_before() -> None:
    records = read_metrics(GOLDEN)
    assert "".join(record.line() for record in records) == (GOLDEN / "metrics.jsonl").read_text(encoding="utf-8")
    assert records[-1].is_of_method
    assert records[-1].normalise == "image"
    images = records[-1].students["resnet10-xs"].images
    assert images is not None
    assert (images.highest[0].image, images.mislabelled) == (700, None)


def test_what_a_method_says_of_its_preparation_is_written_last() -> None:
    record = EpochRecord(stage="distill", epoch=1, step=4, lr=0.5, students={"s": STUDENT})
    told = EpochRecord(**vars(record) | {"preparation": {"difficulty": {"0.5": 0.25}}})
    assert told.line() == record.line()[:-2] + ', "difficulty": {"0.5": 0.25}}\n'
    assert "spread" not in record.line()
    assert "normalise" not in record.line()


def test_records_without_newer_keys_and_with_unknown_ones_are_read(tmp_path: Path) -> None:
    line = {"stage": "warm-start", "epoch": 1, "step": 4, "lr": 0.5, "colour": "red"}
    line["students"] = {"s": {"train_accuracy": 0.5, "losses": {}, "weights": {}, "total_weight": 0, "val_accuracy": 1}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (record,) = read_metrics(tmp_path)
    assert (record.coordinator_updates, record.normalise, record.students["s"].spread) == (0, None, None)
    assert not record.is_of_method


def test_a_line_that_a_crash_has_cut_off_is_left_out(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    content = (GOLDEN / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(content[:-40])
    assert read_metrics(tmp_path) == read_metrics(GOLDEN)[:-1]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_told_in_one_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + (GOLDEN / "metrics.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"metrics.jsonl, line 1: ") as refused:
        read_metrics(tmp_path)
    assert "\n" not in str(refused.value)
