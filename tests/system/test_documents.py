"""The documents are true: commands parse and run, Python blocks run, links resolve, tables are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.exceptions import TyperException

from mcd_cli.cli import app as cli
from mcd_cli.comparison.verdict import SUBJECT, controls_of
from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError
from mcd_cli.methods import METHODS
from mcd_cli.models import COORDINATORS
from mcd_cli.norms import NORMS
from mcd_cli.recipe.loading import load_recipe, parse_setting
from mcd_cli.recipe.schema import CoordinatorSection, Recipe, TeacherSection
from support import ROOT
from support.commands import mcd
from support.runs import tiny_recipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "runs/numbers-mc-distil-1"  # of the documents
CHEAP = ("export", "select", "predict", "report", "profile")  # commands that take seconds on a small run
OPTIONS_OF_RECIPE = ("data_root", "image_size", "method", "epochs", "batch_size", "seed", "precision")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """`mcd NAME ARGS`; `$(…)` in args stands for the output of `inner`."""

    block: Block
    text: str
    name: str
    args: tuple[str, ...]
    inner: Command | None = None

    def __str__(self) -> str:
        return f"{self.block}-{self.text}"


INNER = re.compile(r'"?\$\(([^)]*)\)"?')


def blocks(page: Path, text: str | None = None) -> Iterator[Block]:
    opened: list[str] | None = None
    language, start = "", 0
    for number, line in enumerate((page.read_text(encoding="utf-8") if text is None else text).splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and opened is None:
            opened, language, start = [], fence[1], number
        elif fence:
            assert opened is not None
            yield Block(page, start, language, "\n".join(opened) + "\n")
            opened = None
        elif opened is not None:
            opened.append(line)
    assert opened is None, f"{page}: a fenced block is not closed"


def commands(block: Block) -> Iterator[Command]:
    """Every call of mcd in a block for the shell, an inner one before its outer one."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|", re.sub(r"(^|\s)#.*", "", line)):
            found = INNER.search(part)
            inner = None if found is None else _command(block, found[1])
            if inner is not None:
                yield inner
            command = _command(block, INNER.sub("$()", part), inner)
            if command is not None:
                yield command


def _command(block: Block, text: str, inner: Command | None = None) -> Command | None:
    words = shlex.split(text)
    if words[:1] == ["torchrun"]:
        words = ["mcd", *words[words.index("mcd_cli") + 1 :]]
    if words[:1] != ["mcd"]:
        return None
    assert len(words) > 1, f"{block}: mcd without a command"
    return Command(block, " ".join(words), words[1], tuple(words[2:]), inner)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
ALL_COMMANDS = [command for block in ALL_BLOCKS if block.language == "sh" for command in commands(block)]


@cache
def group() -> Any:
    return typer.main.get_command(cli.app)


def parameters(command: Command) -> dict[str, Any]:
    """What the command line makes of it; raises TyperException for a name or value that it does not know."""
    known = group().commands
    if command.name not in known:
        raise TyperException(f"no command {command.name}")
    context = known[command.name].make_context(command.name, list(command.args))
    found: dict[str, Any] = context.params
    return found


def check_recipe(given: dict[str, Any]) -> None:
    """The names and values of a training command that the parser takes for text. Raises UserError."""
    overrides = {key: given[key] for key in OPTIONS_OF_RECIPE if given.get(key) is not None}
    overrides |= dict(parse_setting(setting) for setting in given["settings"] or [])
    if given["students"] is not None:
        overrides["students"] = given["students"].split(",")
    if (teacher := given["teacher"]) is not None and not re.search(r"[./]", teacher):
        overrides |= {"teacher.arch": teacher}
    name = given["recipe"]
    load_recipe(None if name == "mine.toml" else name, overrides, dataset=given["dataset"])  # mine.toml: below
    for contender in [*(given.get("methods") or "").split(","), *(given.get("overlays") or [])]:
        overlay = [*(ROOT / "recipes").glob(f"*/{contender}.toml"), *(ROOT / "recipes").glob(f"*/{contender}/")]
        if contender and contender not in METHODS and not overlay:
            raise UserError(f"no method or overlay {contender}")


def as_given(text: str) -> Command:
    (command,) = commands(Block(Path("a page"), 1, "sh", text))
    return command


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=str)
def test_a_command_is_known(command: Command) -> None:
    given = parameters(command)
    if command.name in ("distill", "compare"):
        check_recipe(given)


def test_the_documents_use_every_command() -> None:
    assert {command.name for command in ALL_COMMANDS} == set(group().commands)


@pytest.mark.parametrize("text", ["mcd distil", "mcd distill --epoch 3", "mcd select --threads no", "mcd select x"])
def test_an_unknown_command_is_found(text: str) -> None:
    with pytest.raises(TyperException):
        parameters(as_given(text))


@pytest.mark.parametrize(
    "text",
    [
        "mcd distill --method kdd",
        "mcd distill --set coordinator.evry=3",
        "mcd distill --students resnet10-z",
        "mcd distill --recipe cifar1000",
        "mcd distill --teacher resnet45 --dataset ./photos",
        "mcd compare --methods kd,kd-total-4",
        "mcd compare --overlay noise-41",
    ],
)
def test_an_unknown_value_is_found(text: str) -> None:
    with pytest.raises(UserError):
        check_recipe(parameters(as_given(text)))


def test_inner_commands_and_chains_are_found() -> None:
    text = 'cd x && mcd export --student "$(mcd select --max-macs 1M)" | cat  # mcd no\ntorchrun -m mcd_cli distill\n'
    inner, outer, parallel = commands(Block(Path("a page"), 1, "sh", text))
    assert (inner.text, outer.text) == ("mcd select --max-macs 1M", "mcd export --student $()")
    assert outer.inner == inner
    assert parallel.text == "mcd distill"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the documents have it: photos, and the demo's run, much smaller, by the README's own line."""
    folder = tmp_path_factory.mktemp("place")
    recipe = tiny_recipe(
        image_size=16,
        epochs=8,
        batch_size=64,
        teacher={"epochs": 3},
        warm_start={"epochs": 2},
        optimizer={"lr": 0.1},
        coordinator={"arch": "losses", "normalise": "image", "every": 8},
    )
    (folder / "tiny.toml").write_text(recipe.to_toml(), encoding="utf-8")
    pixels = np.random.default_rng(0)
    for name in ("photos/cat.png", "photos/dog.png", "more/bird.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    demo = next(command for command in ALL_COMMANDS if command.text == "mcd distill")
    assert demo.block.page.name == "README.md"
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        assert mcd(patch, demo.name, "--recipe", "tiny.toml", "--out", RUN, "--quiet") == 0
        assert mcd(patch, "export") == 0
        RUN_BEFORE["export"] = dict.fromkeys(((), ("--format", "onnx")), RUN)
    return folder


RUN_BEFORE: dict[str, dict[tuple[str, ...], str]] = {}
"""Command → its arguments → its stdout: the pages repeat each other, and once is enough."""


def run(command: Command, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Its stdout. A latency that a busy machine does not reach is no fault of the documents (exit code 3)."""
    if command.inner is None and command.args in RUN_BEFORE.get(command.name, {}):
        return RUN_BEFORE[command.name][command.args]
    output = "" if command.inner is None else run(command.inner, patch, capsys).strip()
    args = [argument.replace("$()", output) for argument in command.args]
    code = mcd(patch, command.name, *args)
    said = capsys.readouterr()
    assert code == 0 or (code == 3 and "--max-latency" in args), said.err
    RUN_BEFORE.setdefault(command.name, {})[command.args] = said.out
    return said.out


HOLD_CHEAP_ONES = {command.block for command in ALL_COMMANDS if command.name in CHEAP}


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "python" or b in HOLD_CHEAP_ONES], ids=str)
def test_a_block_runs(
    block: Block, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if block.language == "python":
        exec(compile(block.text, str(block), "exec"), {})
        return
    found = [command for command in commands(block) if command.name in CHEAP]
    inner = [command.inner for command in found]
    for command in found:
        if command not in inner:
            assert run(command, monkeypatch, capsys) or "--max-latency" in command.args


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "toml"], ids=str)
def test_a_recipe_in_a_document_is_one(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(block.text, encoding="utf-8")
    load_recipe(str(tmp_path / "mine.toml"), {})


LINK = re.compile(r"\]\(([^)\s#]*)(#[^)\s]+)?\)")


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page to a file, or to a heading, that is not there."""
    broken = []
    for target, anchor in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        path = page.parent / target if target else page
        headings = anchors(path) if anchor and path.suffix == ".md" and path.is_file() else {anchor}
        if not path.exists() or anchor not in headings:
            broken.append(target + anchor)
    return broken


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"#" + re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/nowhere.md) ![b](docs/demo-ladder.png) [c](docs/methods.md#c-net) [d](docs/methods.md#d)"
    assert broken_links(ROOT / "README.md", text) == ["docs/nowhere.md", "docs/methods.md#d"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """`a/path.py` in the text: from the root, or from the package; in capitals, it stands for any name."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = set(re.findall(r"[`\s]((?:[a-z_]+/)+[\w.*-]+\.(?:py|json|toml))\b", text))
    missing = {name for name in named if not [*ROOT.glob(name), *(ROOT / "mcd_cli").glob(name)]}
    missing = {name for name in missing if not Path(name).stem.isupper()}
    assert missing == set()


def recipe_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_tables", ROOT / "scripts" / "recipe_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_recipe_keys_are_current() -> None:
    """Written anew by `python scripts/recipe_tables.py`."""
    script = recipe_tables()
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.written(page) == page
    stale = page.replace("| `epochs` | integer ≥ 1, ≤ 1,000,000 | 500 |", "| `epochs` | integer | 300 |")
    assert stale != page
    assert script.written(stale) == page


def test_every_recipe_is_in_the_documents() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert [path.stem for path in sorted((ROOT / "recipes").glob("*.toml")) if f"`{path.stem}`" not in page] == []


def test_every_method_is_in_the_documents() -> None:
    """A row each, in the order of the table; and what the rows say of a single student."""
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    _, table = page.split("| `--method` |")
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == list(METHODS)
    two = " and ".join(f"`{name}`" for name, row in METHODS.items() if row.needs_two)
    assert f"- {two} need two students" in page
    for other in {row.alone for row in METHODS.values() if row.alone and not row.needs_two}:
        same = [f"`{name}`" for name, row in METHODS.items() if row.alone == other and not row.needs_two]
        assert f"{' and '.join(same)} are `{other}`" in page


def test_every_name_that_a_key_takes_is_in_its_description() -> None:
    described = recipe_tables().descriptions(Recipe)["dataset"]
    assert [name for name in DATASETS if f"`{name}`" not in described] == []
    described = recipe_tables().descriptions(TeacherSection)["norm"]
    assert [name for name in NORMS if f"`{name}`" not in described] == []
    described = recipe_tables().descriptions(CoordinatorSection)["arch"]
    assert [name for name in COORDINATORS if f"`{name}`" not in described] == []


def test_every_control_is_in_the_documents() -> None:
    """In the table, and those that a claim needs in the command for all of them."""
    page = (ROOT / "docs/comparing.md").read_text(encoding="utf-8")
    _, table = page.split("## Controls and ablations")
    (command,) = (line for line in page.splitlines() if line.startswith("mcd compare --methods ce,kd,"))
    for name, claims in controls_of(SUBJECT).items():
        assert f"`{name}`" in table or name in METHODS
        assert not claims or name in re.split("[ ,]", command)
