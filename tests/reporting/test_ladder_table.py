"""The table on a terminal: NLL and ECE stand in it where there is room for them, and the rest stays whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from mcd_cli.ladder.documents import read
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.schema import Calibration, Score
from mcd_cli.reporting.ladder_table import SCORES_ARE, ladder_table, print_ladder
from support.manifests import MANIFEST


@pytest.fixture
def ladder() -> Ladder:
    """Two students; only the first has a temperature."""
    bare = read(TypeAdapter(Ladder), json.dumps(MANIFEST))
    score = {"val": Score(nll=0.5, ece=0.25), "test": Score(nll=0.1234, ece=0.056)}
    calibration = Calibration(temperature=2.0, raw=score, scaled=score)
    first, second = bare.students
    return replace(bare, students=(replace(first, calibration=calibration), replace(second, calibration=None)))


def lines(ladder: Ladder, width: int, is_terminal: bool = True) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None)
    console.print(ladder_table(ladder, console))
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


def test_with_room(ladder: Ladder) -> None:
    for head, *rows in (lines(ladder, 10_000, is_terminal=False), lines(ladder, 90)[1:]):
        assert head[-3:] == ["gain", "NLL", "ECE"]
        assert rows[-2][-2:] == ["0.123", "5.6%"]
        assert rows[-1][-2:] == ["-", "-"]  # as every student of an older run


def test_without_room_the_rest_is_whole(ladder: Ladder) -> None:
    """80 columns hold a long name, its costs and its accuracies; the cut of a column would show as an ellipsis."""
    long = replace(ladder, students=tuple(replace(s, name=f"{s.name}-resnet10-xxs") for s in ladder.students))
    found = lines(long, 80)
    assert "NLL" not in {word for line in found for word in line}
    assert not any("…" in word for line in found for word in line)
    assert found[-1][0] == "s-resnet10-xxs"
    assert "+20.0" in found[-1]


def test_the_caption_explains_what_is_there(ladder: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    print_ladder(ladder, json_output=False)
    assert capsys.readouterr().out.splitlines()[-1] == SCORES_ARE
