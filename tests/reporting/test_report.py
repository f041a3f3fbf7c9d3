"""The plots, the page and the model card of a run."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mcd_cli.cli.profile import profile
from mcd_cli.cli.report import report
from mcd_cli.errors import UserError
from mcd_cli.ladder.manifest import Ladder, load_ladder
from mcd_cli.ladder.metrics import read_metrics
from mcd_cli.reporting.model_card import card, to_markdown
from mcd_cli.reporting.plots import draw, ladder_figure, training_figure
from support.runs import tiny_recipe, train


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    """Two students with warm start and C-NET."""
    return train(tiny_recipe(), tmp_path_factory.mktemp("runs") / "run")


def test_pictures(ladder: Ladder, tmp_path: Path) -> None:
    paths = draw(ladder, tmp_path)
    assert [path.name for path in paths] == ["ladder.png", "ladder.svg", "training.png", "training.svg"]
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width > 1000
                assert len(image.convert("RGB").getcolors(10**6) or []) > 50  # it is not blank
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")
    first = {path: path.read_bytes() for path in paths if path.suffix == ".svg"}
    draw(ladder, tmp_path)
    assert {path: path.read_bytes() for path in first} == first  # the same run, the same drawing


def test_what_the_ladder_shows(ladder: Ladder) -> None:
    """Every student by name, with the arrow from its start; discs' areas are in the ratio of the bytes."""
    (axes,) = ladder_figure(ladder).axes
    shown = " ".join(text.get_text() for text in axes.texts)
    assert all(student.name in shown for student in ladder.students)
    assert axes.get_xscale() == "log"
    discs = axes.collections[0]
    small, large = sorted(discs.get_sizes())
    sizes = sorted(student.bytes for student in ladder.students)
    assert small / large == pytest.approx(sizes[0] / sizes[1])
    arrows = [note for note in axes.texts if getattr(note, "arrow_patch", None) is not None]
    assert len(arrows) == 2
    bare = replace(
        ladder,
        teacher=None,
        students=tuple(replace(s, accuracy=replace(s.accuracy, ce=None)) for s in ladder.students[:1]),
    )
    assert ladder_figure(bare).axes  # without a teacher, without a start, one student alone


def test_what_the_training_shows(ladder: Ladder) -> None:
    assert ladder.folder is not None
    records = [record for record in read_metrics(ladder.folder) if record.stage != "teacher"]
    assert [record.stage for record in records] == ["warm-start", "distill", "distill"]
    accuracy, *weights = training_figure(ladder, records).axes
    lines = {line.get_label(): line for line in accuracy.lines}
    name = ladder.students[0].name
    assert list(lines[name].get_xdata()) == [1, 2, 3]
    assert lines[name].get_ydata()[-1] == pytest.approx(100 * records[-1].students[name].val_accuracy)
    assert [panel.get_ylabel()[0] for panel in weights] == ["α", "β", "γ"]
    assert len(weights[0].collections) == 2  # a band each


def test_plot_into_the_run(ladder: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    assert ladder.folder is not None
    profile(run=ladder.folder, plot=True, json_output=True)
    said = capsys.readouterr()
    assert len(json.loads(said.out)["rows"]) == 2
    assert f"{ladder.folder}/training.svg" in said.err
    with pytest.raises(UserError, match="--plot draws the plots of a run"):
        profile(["resnet10-s"], plot=True)


class Page(HTMLParser):
    """Whatever a browser would fetch, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.said: list[str] = []
        self.tags: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_stands_alone(ladder: Ladder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(ladder.folder, out=str(tmp_path / "new"))
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["report.html", "MODEL_CARD.md"]
    page = Page(paths[0].read_text(encoding="utf-8"))
    text = " ".join(page.said)
    assert len(page.sources) == 2
    for source in page.sources:
        kind, _, content = source.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ET.fromstring(b64decode(content)).tag.endswith("svg")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    for student in ladder.students:
        assert student.name in text
    assert f"{100 * ladder.students[0].accuracy.val:.1f} %" in text
    assert 'method = "mc-distil"' in text  # the recipe
    assert "C-NET, updated" in text
    assert "Nothing is exported yet" in text
    assert "Not measured yet" in text


def test_the_card(deployed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is exported: its gates and latencies; of a method without C-NET."""
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    report(run, json_output=True)
    document = json.loads(capsys.readouterr().out)
    text = Path(document["card"]).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "What this is", "Students", "Calibration", "Use", "Training", "Exports", "Latencies", "Limits"
    ]  # fmt: skip
    report(run, license="apache-2.0")
    front, body = Path(document["card"]).read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    assert body.strip() == text.split("\n---\n", 1)[1].strip()
    values = yaml.safe_load(front)
    assert (values["license"], values["library_name"], values["datasets"]) == ("apache-2.0", "mcd", ["digits"])
    assert [model["name"] for model in values["model-index"]] == [s.name for s in load_ladder(run).students]
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == load_ladder(run).students[0].accuracy.test
    with pytest.raises(UserError, match="--license takes an identifier"):
        report(run, license="MIT license")
    student = load_ladder(run).students[0]
    assert student.exported["int8"].sha256[:12] in text
    assert "0 changed" in text
    assert re.search(r"(slower|faster): [\d.]+[um]s instead of", text)
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| resnet10-xxs |")}
    assert widths <= {7, 12}
    calibration = student.calibration
    assert calibration is not None
    (row,) = re.findall(r"^\| resnet10-xxs \| [\d.]+ \| .* → .*$", text, re.MULTILINE)
    raw, scaled = calibration.raw["test"], calibration.scaled["test"]
    assert f" {raw.nll:.3f} → {scaled.nll:.3f} |" in row
    assert f" {100 * raw.ece:.1f} % → {100 * scaled.ece:.1f} % |" in row
    assert f"| {scaled.nll:.3f} | {100 * scaled.ece:.1f} % |" in text
    assert "| raw |" in text  # the exported logits
    assert "ce has no coordinator" in Path(document["page"]).read_text(encoding="utf-8")


def test_the_card_of_a_run_of_before(ladder: Ladder) -> None:
    """Its probabilities were never calibrated: dashes, and a line that says so."""
    old = replace(ladder, students=tuple(replace(s, calibration=None) for s in ladder.students))
    text = to_markdown("", card(old))
    assert "| – | – |" in text
    assert "No temperature was fitted" in text
    assert "The probabilities are not calibrated." in text
    assert "The probabilities are not calibrated." not in to_markdown("", card(ladder))


def test_hostile_names_are_text(ladder: Ladder, tmp_path: Path) -> None:
    """A class or a data set may be called anything."""
    assert ladder.folder is not None
    run = tmp_path / "run"
    shutil.copytree(ladder.folder, run)
    classes = ("<script>alert(1)</script>", *ladder.dataset.classes[1:])
    replace(ladder, dataset=replace(ladder.dataset, name="<b>&", classes=classes)).save(run)
    report(run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "b"} & set(page.tags)
    assert "<script>alert(1)</script>" in " ".join(page.said)


def test_where_it_cannot_write(ladder: Ladder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --out"):
        report(ladder.folder, out=str(tmp_path / "file/below"))
    with pytest.raises(UserError, match=r"run folder .* does not exist"):
        report(tmp_path / "none")
