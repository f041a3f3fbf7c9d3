"""Contenders of a comparison: methods, and overlays, which are recipes that set only what they change. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcd_cli.errors import UserError, unknown
from mcd_cli.methods import METHODS
from mcd_cli.recipe.loading import lay_over, read_changes, recipes_folder
from mcd_cli.recipe.schema import Recipe

OVERLAYS = ("controls", "ablations")
SHARED = ("dataset", "data_root", "image_size", "split_seed", "label_noise", "teacher", "seed")
"""Recipe keys that must be the same for all contenders, so that a comparison compares methods and nothing else."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Contender:
    """One method or overlay in a comparison.

    changes: the recipe keys it sets on top of the base; group: name of the group it is a candidate of, if any: the
    candidate with the best accuracy on val represents the group.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """The contender's recipe with that seed. Raises UserError if it changes a key that all contenders share."""
        common = sorted(key for key in self.changes if key in SHARED)
        if common:
            raise UserError(
                f"{self.name} changes {' and '.join(common)}, which must be the same for all contenders; "
                f"apply it to all of them with --overlay {self.name}"
            )
        return lay_over(base, {**self.changes, "seed": seed})


def find_contenders(name: str) -> list[Contender]:
    """The contenders that a name stands for: a method, an overlay's name or file, or a folder with a group of overlays.

    Raises UserError with the nearest names.
    """
    if name in METHODS:
        return [Contender(name, {"method": name})]
    if name.endswith(".toml"):
        stem = Path(name).stem
        if not NAME.fullmatch(stem) or stem in METHODS:
            raise UserError(
                f"{name}: {stem!r} cannot be a contender's name; "
                "rename the file to letters, digits, - and _, but not to a method's name"
            )
        return [Contender(stem, read_changes(Path(name)))]
    for folder in (recipes_folder() / kind for kind in OVERLAYS):
        if (folder / f"{name}.toml").is_file() and NAME.fullmatch(name):
            return [Contender(name, read_changes(folder / f"{name}.toml"))]
        if (folder / name).is_dir() and NAME.fullmatch(name):
            files = sorted((folder / name).glob("*.toml"))
            return [Contender(f"{name}/{path.stem}", read_changes(path), group=name) for path in files]
    raise unknown("method or overlay", name, contender_names())


def contender_names() -> list[str]:
    """Every name that `find_contenders` accepts."""
    names = list(METHODS)
    for folder in (recipes_folder() / kind for kind in OVERLAYS):
        files = sorted(folder.rglob("*.toml")) if folder.is_dir() else []
        names += [path.relative_to(folder).with_suffix("").as_posix() for path in files]
        names += sorted({path.parent.name for path in files if path.parent != folder})
    return names
