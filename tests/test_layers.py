"""The house stands: imports point down only, and what must be quick to start never loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mcd_cli

PACKAGE = Path(mcd_cli.__file__).parent

# From the roof to the ground; a room may import itself and every room below it. `x.*` is a package's files, `x`
# alone its table (the __init__, name -> "module:attribute").
ROOMS = [
    "__main__",
    "cli",
    "commands.*",
    "page",
    "card",
    "report pictures story",
    "comparison comparison.*",
    "engine.*",
    "methods.*",
    "export int8",
    "ladder",
    "budget forms latency",
    "session entries typed_json",
    "meta",
    "models.*",
    "data.*",
    "losses",
    "cost",
    "run_folder",
    "contenders",
    "recipe",
    "batch_norm_on_cpu",
    "batch_norm convolution",
    "norms files console machine table_3 seeds start quantities models data methods engine commands registry",
    "processes overrides",
    "errors",
]


def modules() -> dict[str, Path]:
    """Name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name != "__init__"}


MODULES = modules()


def floor(module: str) -> int:
    """Its room's place from the ground; an unknown module has no room yet: give it one above."""
    family, dot, _ = module.partition(".")
    wanted = f"{family}.*" if dot else module
    (place,) = (i for i, room in enumerate(reversed(ROOMS)) if wanted in room.split())
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
    """In functions too: only a table loads, lazily, the files of its own package."""
    is_table = MODULES[module].name == "__init__.py"
    for imported in imports(MODULES[module], lazy=True):
        if not (is_table and imported.startswith(f"{module}.")):
            assert floor(imported) <= floor(module), f"{module} imports {imported}, which stands above it"


def test_no_circles() -> None:
    """Within a room, too, some order of import exists."""
    graph = {name: {i for i in imports(path, lazy=False) if i in MODULES} for name, path in MODULES.items()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"these import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_every_module_is_seen() -> None:
    assert {"cli", "models", "models.students", "engine.trainer", "errors"} <= MODULES.keys()
    assert set(imports(PACKAGE / "meta.py", lazy=False)) == {"batch_norm", "losses", "overrides"}
    assert "commands.distill" in set(imports(PACKAGE / "cli.py", lazy=True)) - set(
        imports(PACKAGE / "cli.py", lazy=False)
    )


def test_names_say_what_is_inside() -> None:
    for module in MODULES:
        assert not {"utils", "util", "helpers", "manager", "common", "misc"} & set(module.replace(".", "_").split("_"))


def test_what_starts_quickly_never_loads_torch() -> None:
    quick = [
        "cli",
        "recipe",
        "run_folder",
        "ladder",
        "commands.select",
        "commands.distill",
        "commands.profile",
        "commands.compare",
    ]
    names = ", ".join(f"mcd_cli.{name}" for name in quick)
    code = f"import sys, {names}\nprint(sorted({{'torch', 'torchvision', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


WHOLE_RUNS = """
import sys
from mcd_cli import cli
settings = ["teacher.epochs=1", "teacher.arch=resnet10-xs", "warm_start.epochs=1", "batch_size=256", "image_size=8"]
for out in sys.argv[1:]:  # the second loads the teacher that the first has trained
    sys.argv = ["mcd", "distill", "--epochs", "1", "--threads", "1", "--out", out]
    sys.argv += [word for setting in settings for word in ("--set", setting)]
    try:
        cli.main()
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
