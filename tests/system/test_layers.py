"""Imports point down only, and what must be quick to start never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import TESTS
from support.sources import MODULES

# From the roof to the ground. A room imports itself and the rooms below it; those on one row do not know each other.
ROOMS = [
    "__main__ api",
    "cli",
    "cluster comparison loggers",
    "engine",
    "formats reporting",
    "ladder",
    "recipe",
    "methods models data",
    "ops",
    "losses",
    "files machine norms quantities registry seeds",
    "errors",
]


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    """Its room's place from the ground; an unknown module has no room yet: give it one above."""
    (place,) = (i for i, row in enumerate(reversed(ROOMS)) if room(module) in row.split())
    return place


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """Modules of ours that the file imports, in functions too where lazy; not those for the type checker alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            source = node.module or ""
            for alias in node.names:
                whole = f"{source}.{alias.name}".removeprefix("mcd_cli.")
                if source.startswith("mcd_cli"):
                    yield whole if whole in MODULES else source.removeprefix("mcd_cli.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("mcd_cli.") for a in node.names if a.name.startswith("mcd_cli."))
        pending.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """In functions too."""
    for imported in imports(MODULES[module], lazy=True):
        below = floor(imported) < floor(module)
        assert below or room(imported) == room(module), f"{module} imports {imported}, which is not below it"


def test_no_circles() -> None:
    """Within a room, too, some order of import exists."""
    graph = {name: {i for i in imports(path, lazy=False) if i in MODULES} for name, path in MODULES.items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_every_module_is_seen() -> None:
    assert {"cli.app", "models", "models.students", "engine.trainer", "errors"} <= MODULES.keys()
    assert set(imports(MODULES["ops.meta_gradient"], lazy=False)) == {"losses.ce", "ops.batch_norm", "ops.overrides"}
    lazy, eager = (set(imports(MODULES["cli.app"], lazy=lazy)) for lazy in (True, False))
    assert "cli.distill" in lazy - eager


def test_the_root_holds_little() -> None:
    """What belongs to a room lies in it; a new module in the root needs a reason."""
    assert len([name for name in MODULES if "." not in name and MODULES[name].name != "__init__.py"]) <= 9


def test_every_room_says_what_is_in_it() -> None:
    """In its docstring; and to open the door costs nothing."""
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name} does not say what it holds"


def test_names_say_what_is_inside() -> None:
    for module in MODULES:
        assert not {"utils", "util", "helpers", "manager", "common", "misc"} & set(module.replace(".", "_").split("_"))


TEST_FILES = sorted(TESTS.rglob("test_*.py"))
HELPERS = {f"support.{path.stem}" for path in (TESTS / "support").glob("*.py")} | {"support"}


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_from_another(path: Path) -> None:
    """What two of them use is in tests/support."""
    others = {other.stem for other in TEST_FILES} | {"conftest", "tests"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            assert not others & set(name.split(".")), f"line {node.lineno} imports {name}"
            assert name.partition(".")[0] != "support" or name in HELPERS, f"line {node.lineno}: no {name}"


def test_every_room_has_tests() -> None:
    """A folder of its name; and each folder of tests is a room, or one of those that tests/README.md explains."""
    rooms = {room(name) for name, path in MODULES.items() if path.name == "__init__.py"}
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == rooms | {"hostile", "support", "system"}
    for name in folders:
        assert f"`{name}/`" in (TESTS / "README.md").read_text(encoding="utf-8")


def test_what_starts_quickly_never_loads_torch() -> None:
    quick = [
        "cli.app",
        "recipe.loading",
        "ladder.folder",
        "ladder.manifest",
        "cli.select",
        "cli.distill",
        "cli.profile",
        "cli.compare",
        "cli.export",
        "cli.report",
        "reporting.model_card",
    ]
    names = ", ".join(f"mcd_cli.{name}" for name in quick)
    code = f"import sys, {names}\nprint(sorted({{'torch', 'torchvision', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


WHOLE_RUNS = """
import sys
from mcd_cli.cli import app
settings = ["teacher.epochs=1", "teacher.arch=resnet10-xs", "warm_start.epochs=1", "batch_size=256", "image_size=8"]
for out in sys.argv[1:]:  # the second loads the teacher that the first has trained
    sys.argv = ["mcd", "distill", "--epochs", "1", "--threads", "1", "--out", out]
    sys.argv += [word for setting in settings for word in ("--set", setting)]
    try:
        app.run_command()
    except SystemExit as end:
        assert end.code == 0, end.code
import torch
print(torch.are_deterministic_algorithms_enabled())
print(sorted({"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"} & sys.modules.keys()))
"""


def test_a_whole_run_does_not_load_torchs_compiler(tmp_path: Path) -> None:
    """It takes two seconds of every start, and one more at the end."""
    command = [sys.executable, "-c", WHOLE_RUNS, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "resnet10-xxs" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["True", "[]"], done.stderr
