"""`mcd predict`: files, folders and patterns in, labels out; load() and onnxruntime agree."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mcd_cli import load_ladder
from mcd_cli.cli.predict import image_files, predict
from mcd_cli.data import load_dataset
from mcd_cli.errors import NothingFits, RunFailed, UserError

NAME = "resnet10-xxs"


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Ten test images as a.png … e.png and more/f.png … j.png in the working folder; returns their pixels."""
    dataset = load_dataset("digits")
    pixels = dataset.images[dataset.test[:10]]
    (tmp_path / "more").mkdir()
    for name, image in zip("abcdefghij", pixels, strict=True):
        path = tmp_path / ("more" if name > "e" else "") / f"{name}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return pixels


@pytest.mark.parametrize("exported", [True, False])
def test_labels_are_those_of_the_model(
    deployed: Path, images: torch.Tensor, tmp_path: Path, exported: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = deployed
    if not exported:
        run = tmp_path / "run"
        shutil.copytree(deployed, run)
        shutil.rmtree(run / "exports")
    predict(["a.png", "b.png", "[c-e].png", "more"], run, student=NAME, top=3, json_output=True)
    document = json.loads(capsys.readouterr().out)
    (student,) = json.loads((run / "ladder.json").read_text())["students"]
    assert document["temperature"] == student["calibration"]["temperature"]
    assert (document["run"], document["student"]) == (str(run), NAME)
    assert [Path(entry["path"]).stem for entry in document["images"]] == list("abcdefghij")
    odds = (load_ladder(run).load(NAME)(images / 255.0) / document["temperature"]).softmax(dim=1)
    for entry, expected in zip(document["images"], odds, strict=True):
        values, classes = expected.topk(3)
        assert [guess["label"] for guess in entry["top"]] == [str(int(c)) for c in classes]
        assert [guess["probability"] for guess in entry["top"]] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_line_per_image(deployed: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    predict(["."], deployed, max_macs="1G")
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()]
    assert [row[0] for row in rows] == [f"./{'more/' * (name > 'e')}{name}.png" for name in "abcdefghij"]
    assert all(row[1] in "0123456789" and row[2].endswith("%") for row in rows)
    assert "on val" in said.err


def test_other_sizes_are_squared(deployed: Path, images: torch.Tensor) -> None:
    """A colour picture of another shape goes through as the training's pictures would."""
    Image.new("L", (50, 20), 255).save("wide.png")
    session = load_ladder(deployed).session(NAME)
    assert session.read("wide.png").shape == (3, 16, 16)
    assert (session.read("wide.png") == 1).all()
    ((guess,),) = session.predict("wide.png")
    assert guess.label in session.classes


def test_what_cannot_be_labelled(deployed: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    Path("torn.png").write_bytes(Path("a.png").read_bytes()[:60])
    Path("empty").mkdir()
    for image, why in {"none*.png": "no file matches 'none\\*.png'", "empty": "contains no images"}.items():
        with pytest.raises(UserError, match=why):
            predict(["a.png", image], deployed, student=NAME)
    for options, why in {
        ("min_confidence", "90"): "--min-confidence: '90' is not an accuracy: it is above 1; write it like 0.72",
        ("format", "tsv"): "unknown format 'tsv'",
    }.items():
        with pytest.raises(UserError, match=why):
            predict(["a.png"], deployed, student=NAME, **dict([options]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="two formats; give one"):
        predict(["a.png"], deployed, student=NAME, format="csv", json_output=True)
    with pytest.raises(UserError, match="name a --student or a budget, not both"):
        predict(["a.png"], deployed, student=NAME, max_macs="1G")
    with pytest.raises(UserError, match="did you mean resnet10-xxs"):
        predict(["a.png"], deployed, student="resnet10-xx")
    with pytest.raises(UserError, match="is not a variant of a student"):
        predict(["a.png"], deployed, student=f"{NAME}.int4")
    with pytest.raises(NothingFits):
        predict(["a.png"], deployed, max_macs=1)
    assert capsys.readouterr().out == ""
    assert list(image_files("more/f.png")) == ["more/f.png"]


def test_broken_files_are_named_and_the_others_labelled(
    deployed: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("torn.png").write_bytes(Path("a.png").read_bytes()[:60])
    names = ["a.png", "torn.png", "notes.txt", "b.png", "none.png", "c.png"]
    with pytest.raises(RunFailed, match=r"3 of 6 images cannot be read: torn.png, notes.txt, none.png") as failed:
        predict(names, deployed, student=NAME)
    assert failed.value.exit_code == 1
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["a.png", "b.png", "c.png"]
    _, *errors = said.err.splitlines()
    assert [line.split("'")[1] for line in errors] == ["torn.png", "notes.txt", "none.png"]
    assert "not in an image format" in errors[1]
    assert "No such file" in errors[2]
    with pytest.raises(RunFailed):
        predict(names, deployed, student=NAME, format="jsonl")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == names
    assert ["error" in row for row in rows] == [False, True, True, False, True, False]
    with pytest.raises(UserError, match=r"torn.png"):
        load_ladder(deployed).session(NAME).predict(names)


def test_formats_say_the_same(
    deployed: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CSV, JSON lines and one document; paths from stdin; what is not likely enough is left out."""
    given = io.TextIOWrapper(io.BytesIO(b"b.png\n\nmore/f.png\r\n"))
    monkeypatch.setattr(sys, "stdin", given)
    said = {}
    for format in ("csv", "jsonl", "text"):
        given.buffer.seek(0)
        predict(["-", "a.png"], deployed, student=NAME, top=10, format=format, min_confidence="0.2%")
        said[format] = capsys.readouterr().out
    predict(["a.png", "b.png", "more/f.png"], deployed, student=NAME, top=10, json_output=True)
    whole = json.loads(capsys.readouterr().out)["images"]
    likely = [
        {"path": image["path"], "top": [guess for guess in image["top"] if guess["probability"] >= 0.002]}
        for image in whole
    ]
    assert [json.loads(line) for line in said["jsonl"].splitlines()] == likely
    rows = list(csv.DictReader(io.StringIO(said["csv"])))
    flat = [
        (image["path"], str(i), g["label"], g["probability"]) for image in likely for i, g in enumerate(image["top"], 1)
    ]
    assert [(row["path"], row["rank"], row["label"], float(row["probability"])) for row in rows] == flat
    lines = [line.split() for line in said["text"].splitlines()]
    assert [line[:2] for line in lines] == [[image["path"], image["top"][0]["label"]] for image in likely]
    predict(["a.png"], deployed, student=NAME, min_confidence=1.0, format="csv")
    assert capsys.readouterr().out == "path,rank,label,probability\na.png,,,\n"
    predict(["a.png"], deployed, student=NAME, min_confidence=1.0)
    assert capsys.readouterr().out == "a.png  -\n"


def test_many_images_keep_their_order(deployed: Path, images: torch.Tensor) -> None:
    """More than two batches, several at a time; each is labelled before the last is read."""
    session = load_ladder(deployed).session(NAME)
    paths = [name for name in ("a.png", "b.png", "c.png", "none.png", "d.png") for _ in range(40)]
    taken: list[str] = []

    def source() -> Iterator[str]:
        for path in paths:
            taken.append(path)
            yield path

    labelled = session.label(source(), threads=2)
    first = next(labelled)
    assert len(taken) < len(paths)
    found = [first, *labelled]
    assert [image.path for image in found] == paths
    alone = {path: session.predict(path)[0][0].label for path in set(paths) - {"none.png"}}
    assert [image.top[0].label if image.error is None else None for image in found] == [alone.get(p) for p in paths]


def test_files_that_were_changed(deployed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    path = run / f"exports/{NAME}.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="sha256 differs"):
        load_ladder(run).session(NAME)
    path.unlink()
    with pytest.raises(UserError, match=f"mcd export --run .*run --student {NAME}"):
        load_ladder(run).session(NAME)
