"""The command line as the shell sees it, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mcd_cli.cli import app


def mcd(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """What the shell sees of `mcd args`, in this process."""
    monkeypatch.setattr(sys, "argv", ["mcd", *args])
    with pytest.raises(SystemExit) as end:
        app.run_command()
    assert isinstance(end.value.code, int)
    return end.value.code


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path, *args: str, code: int = 2
) -> str:
    """The one line of a refusal, after which the folder is as it was."""
    before = everything(place)
    assert mcd(monkeypatch, *args) == code
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("mcd: ")]
    assert len(lines) == 1, said.err
    assert said.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    assert said.out == ""
    assert everything(place) == before
    return lines[0].removeprefix("mcd: ")
