"""The names that `mcd_cli` exports: importable, torch-free, and the errors in one tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mcd_cli
from mcd_cli.errors import McdError


@pytest.mark.parametrize("name", mcd_cli.__all__)
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(mcd_cli, name).__name__ == name
    assert name in dir(mcd_cli)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_lader'"):
        mcd_cli.load_lader  # noqa: B018


def test_every_error_class_is_exported() -> None:
    assert {error.__name__ for error in McdError.__subclasses__()} | {"McdError"} <= set(mcd_cli.__all__)


def test_importing_is_free() -> None:
    code = (
        "import sys, mcd_cli\nassert not [m for m in sys.modules if m.startswith('mcd_cli.')]\n"
        "from mcd_cli import Ladder, NothingFits, Session, load_ladder\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_package_is_typed() -> None:
    assert (Path(mcd_cli.__file__).parent / "py.typed").is_file()
