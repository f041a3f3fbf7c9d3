"""Every option has one definition and a help text; options classes become flags and come back as objects."""

from __future__ import annotations

import pytest
import typer

from mcd_cli.cli import app as cli
from mcd_cli.cli.options import BudgetOptions, CompareOptions, DistillOptions
from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError
from mcd_cli.ladder.budget import Budget, Limits
from mcd_cli.methods import METHODS
from support.commands import mcd

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str, code: int = 0
) -> tuple[str, str]:
    assert mcd(monkeypatch, *args) == code
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_explains_itself(name: str) -> None:
    """In a sentence that fits the command; and no Python type is shown."""
    for parameter in COMMANDS[name].params:
        is_switch = parameter.type_descriptor.annotation is bool
        assert parameter.help, f"{name} {parameter.opts}"
        assert parameter.metavar or is_switch, f"{name} {parameter.opts}"
        assert parameter.help.endswith((".", "…")), f"{name} {parameter.opts}"


def test_help_has_headings_and_no_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text, _ = output(monkeypatch, capsys, "predict", "-h")
    lines = text.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Arguments:", "Budget:", "Options:", "Hardware:", "Output:"]
    assert not any("<list" in line or "(one per core)" in line for line in lines)
    assert max(map(len, lines)) > 100  # as wide as the terminal
    assert any("-r, --run DIR" in line and "[default: the newest under ./runs]" in line for line in lines)


def test_help_names_what_the_tables_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("distill", "compare"):
        text, _ = output(monkeypatch, capsys, command, "-h")
        unbroken = "".join(text.split())  # a line may end at the hyphen of a name
        assert all(name in unbroken for name in (*METHODS, *DATASETS))


def test_mcd_alone_prints_its_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = output(monkeypatch, capsys, code=2)
    assert (out, err.split()[0]) == ("", "Usage:")
    assert all(f"  {name} " in err for name in COMMANDS)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(monkeypatch, capsys, "--version")
    assert out.startswith("mcd ")


def test_flags_become_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("mcd_cli.cli.distill.distill", given.append)
    monkeypatch.setattr("mcd_cli.cli.compare.compare", given.append)
    for args in ("distill --set a=1 --set b=2 --seed 3 --fast", "compare --methods kd --overlay noise-20 --threads 2"):
        assert mcd(monkeypatch, *args.split()) == 0
    assert given == [
        DistillOptions(settings=["a=1", "b=2"], seed=3, fast=True),
        CompareOptions(methods="kd", overlays=["noise-20"], threads=2),
    ]


def test_changes_of_the_recipe() -> None:
    options = DistillOptions(method="kd", epochs=3, teacher_norm="half", fast=True)
    assert options.recipe_changes() == {"method": "kd", "epochs": 3, "teacher.norm": "half", "deterministic": False}
    assert DistillOptions().recipe_changes() == CompareOptions().recipe_changes() == {}


def test_a_budget_has_the_same_limits_everywhere() -> None:
    assert list(Limits.__annotations__) == list(BudgetOptions.__annotations__)
    limits = BudgetOptions(max_macs=["16M"], min_accuracy=["72%"]).limits()
    assert limits == {"max_macs": "16M", "min_accuracy": "72%"}
    assert Budget.parse(**limits).limits == {"max_macs": 16_000_000, "min_accuracy": 0.72}
    with pytest.raises(UserError, match=r"--max-size was given 2 times \(1MB, 2MB\)"):
        BudgetOptions(max_size=["1MB", "2MB"]).limits()
    with pytest.raises(UserError, match="unknown limit 'max_mac'; did you mean max_macs"):
        Budget.parse(max_mac="16M")
