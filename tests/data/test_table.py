"""CSV, TSV and JSONL of paths and labels: the same data set as the folder, columns found or given, lines named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mcd_cli.data import load_dataset
from mcd_cli.errors import UserError
from support.commands import mcd

KINDS = ("9", "10", "2")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images of each of three classes, each in a part of its own colour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "cache"))
    draws = np.random.default_rng(0)
    for kind in KINDS:
        for i in range(10):
            part = "test" if i < 2 else "val" if i < 4 else "train"
            path = tmp_path / "photos" / part / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def rows(photos: Path) -> list[dict[str, str]]:
    found = sorted(photos.rglob("*.png"))
    return [{"Path": str(p.relative_to(photos)), "label": p.parent.name, "split": p.parts[-3]} for p in found]


def write(path: Path, content: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, content[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(content)
    return path


def pictures(name: str) -> dict[str, set[tuple[bytes, str]]]:
    """Each part's images with the names of their classes."""
    data = load_dataset(name, report=lambda line: None)
    return {
        part: {(data.images[i].numpy().tobytes(), data.classes[int(data.labels[i])]) for i in ids.tolist()}
        for part, ids in (("train", data.train), ("val", data.val), ("test", data.test))
    }


def test_a_table_is_the_data_set_of_the_folder(photos: Path) -> None:
    whole = rows(photos)
    write(photos / "a.csv", whole)
    write(photos / "b.tsv", whole, "\t")
    (photos / "c.jsonl").write_text("".join(json.dumps(row | {"score": 1}) + "\n" for row in whole))
    write(photos / "d.csv", [{"x": row["label"], "y": row["split"], "z": row["Path"]} for row in whole])
    expected = pictures(str(photos))
    assert [len(part) for part in expected.values()] == [18, 6, 6]
    for name in ("a.csv", "b.tsv", "c.jsonl", "d.csv:z,x,y"):
        assert pictures(str(photos / name)) == expected, name


def test_columns_are_said_and_numbers_are_in_their_order(photos: Path) -> None:
    said: list[str] = []
    write(photos / "a.csv", rows(photos))
    data = load_dataset(str(photos / "a.csv"), report=said.append)
    assert "a.csv: paths from the column 'Path', labels 'label', splits 'split'" in said
    assert data.classes == ("2", "9", "10")


def test_without_splits_or_with_one_other_part(photos: Path) -> None:
    whole = rows(photos)
    write(photos / "a.csv", [{"path": row["Path"], "label": row["label"]} for row in whole])
    assert [len(part) for part in pictures(str(photos / "a.csv")).values()] == [24, 3, 3]
    write(photos / "b.csv", [row | {"split": "train" if row["split"] == "test" else row["split"]} for row in whole])
    assert len(pictures(str(photos / "b.csv"))["test"]) == 6  # val alone is the test set


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "has no lines of data"),
        ("path,label\ntrain/2/4.png,\n", "line 2: the label is empty"),
        ("path,label\ntrain/2/4.png,a\nnowhere.png,b\n", "line 3: there is no image 'nowhere.png'; paths are relative"),
        ("path,label\n.,b\n", "line 2: there is no image '.'"),
        ("path,label\ntrain/2/4.png,a,b\n", "line 2: more values than columns"),
        ("path,label,split\ntrain/2/4.png,a,trian\n", "line 2: split 'trian' is none of train, val and test"),
        ("path,label,split\ntrain/2/4.png,a,val\n", "has no images of the split train"),
        ("photo,kind\ntrain/2/4.png,a\n", "which column of .* has the paths\\? It has 'photo', 'kind'; name them"),
        ("path,kind\ntrain/2/4.png,a\n", "which column of .* has the labels"),
        ("path,label\ntrain/2/4.png,a\n", "class"),
    ],
)
def test_what_is_wrong_is_one_line(photos: Path, text: str, message: str) -> None:
    (photos / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_dataset(str(photos / "a.csv"), report=lambda line: None)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_lines_that_are_no_object(photos: Path) -> None:
    (photos / "a.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(UserError, match="it must be text in UTF-8"):
        load_dataset(str(photos / "a.csv"))
    for text in ("[1]\n", "{\n", "[" * 100_000):
        (photos / "b.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"line 1: .*each line must be a JSON object"):
            load_dataset(str(photos / "b.jsonl"))
    write(photos / "c.csv", rows(photos))
    with pytest.raises(UserError, match=r"has no column 'kind'; it has 'Path', 'label', 'split'"):
        load_dataset(f"{photos / 'c.csv'}:Path,kind")


def test_a_run_of_a_table(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(photos / "a.csv", rows(photos))
    args = ["--students", "resnet10-xxxs", "--teacher", "resnet10-xxs", "--method", "ce", "--epochs", "1"]
    args += ["--set", "warm_start.epochs=0", "--set", "teacher.epochs=1", "--batch-size", "6", "--threads", "1"]
    assert mcd(monkeypatch, "distill", "-d", "photos/a.csv", *args, "--quiet") == 0
    assert "resnet10-xxxs" in capsys.readouterr().out
    assert [path.name for path in Path("runs").iterdir()] == ["a.csv-ce-1"]
