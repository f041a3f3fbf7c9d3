"""What a comparison trains: contenders × seeds, and which of these cells are equal by definition."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mcd_cli.comparison.claims import claim
from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import write_whole
from mcd_cli.methods import METHODS
from mcd_cli.methods.settings import DistillSection
from mcd_cli.recipe.loading import parse_recipe
from mcd_cli.recipe.overlays import Contender
from mcd_cli.recipe.schema import CoordinatorSection, Recipe

PLAN, DOCUMENT, MARKDOWN = "comparison.toml", "comparison.json", "comparison.md"


@dataclass(frozen=True)
class Cell:
    """One run: a contender on a seed. Cells with the same `identity` are equal by definition."""

    contender: str
    seed: int
    recipe: Recipe
    identity: str

    @property
    def name(self) -> str:
        return f"{self.contender.replace('/', '.')}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The base recipe, the contenders, and the seeds."""

    base: Recipe
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        names = [contender.name for contender in self.contenders]
        for kind, values in (("method", names), ("seed", [str(seed) for seed in self.seeds])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise UserError(f"duplicate {kind} {', '.join(twice)}; give each only once")
            if not values:
                raise UserError(f"a comparison needs a {kind}")

    def cells(self) -> list[Cell]:
        """All cells, seed by seed; within a seed kd first, because chains reuse their first link from it."""
        cells = []
        links = [{"method": spec.first_link} for spec in METHODS.values() if spec.first_link]
        for seed in self.seeds:
            for contender in sorted(self.contenders, key=lambda c: c.changes not in links):
                recipe = contender.recipe(self.base, seed)
                cells.append(Cell(contender.name, seed, recipe, identity(recipe)))
        return cells

    def save(self, folder: Path) -> None:
        write_whole(folder / PLAN, tomli_w.dumps(self._document()).encode())

    def add_to(self, folder: Path) -> Plan:
        """Add the contenders and seeds to the plan in this folder, or start one there; returns the whole plan.

        Raises UserError if the plan there has another base recipe.
        """
        folder.mkdir(exist_ok=True)
        with claim(folder, "plan", wait=True):
            whole = self
            if (folder / PLAN).is_file():
                there = Plan.load(folder)
                there.refuse_other_base(self)
                contenders = {contender.name: contender for contender in (*there.contenders, *self.contenders)}
                seeds = dict.fromkeys((*there.seeds, *self.seeds))
                whole = Plan(self.base, tuple(contenders.values()), tuple(seeds))
            whole.save(folder)
        return whole

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of a comparison's folder; raises UserError if there is none."""
        path = folder / PLAN
        if not path.is_file():
            raise UserError(f"{folder} is not a comparison (it has no {PLAN})")
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            contenders = tuple(
                Contender(entry["name"], entry["changes"], entry.get("group")) for entry in content["contenders"]
            )
            return cls(parse_recipe(content["base"]), contenders, tuple(content["seeds"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({reason_of(error)}); choose another --out") from None

    def refuse_other_base(self, other: Plan) -> None:
        """Raises UserError if the base recipe differs: only methods and seeds can be added to a comparison."""
        for key in differing(self.base, other.base):
            if not key.startswith(("checkpoint.", "data_root")) and key not in ("method", "seed"):
                raise UserError(
                    f"the comparison in this folder has another {key}; its cells would not be comparable: "
                    "choose another --out"
                )

    def _document(self) -> dict[str, Any]:
        contenders = [
            {
                "name": contender.name,
                "changes": dict(contender.changes),
                **({"group": contender.group} if contender.group else {}),
            }
            for contender in self.contenders
        ]
        return {
            "seeds": list(self.seeds),
            "contenders": contenders,
            "base": self.base.model_dump(mode="json", exclude_none=True),
        }


def identity(recipe: Recipe) -> str:
    """A hash that is equal for recipes that train the same students: it omits settings that the method ignores."""
    method = recipe.method
    if len(recipe.students) == 1:
        method = METHODS[method].alone or method
    spec = METHODS[method]
    used = {key: value for key, value in recipe.distill.model_dump().items() if key in spec.settings}
    changes: dict[str, Any] = {"method": method, "distill": DistillSection.model_validate(used)}
    if not spec.learned:
        changes["coordinator"] = CoordinatorSection()
    return recipe.model_copy(update=changes).sha256()


def first_link_identity(recipe: Recipe) -> str | None:
    """The identity of the run whose largest student is this chain's first link; None if the method is not a chain."""
    method = METHODS[recipe.method].first_link
    return None if method is None else identity(recipe.model_copy(update={"method": method}))


def warm_start_recipe(recipe: Recipe, students: Mapping[str, str]) -> Recipe:
    """The recipe of a run that only warm-starts these students: method ce, without settings that it ignores.

    All other settings stay, so recipes share a warm start only if its result must be the same.
    """
    return recipe.model_copy(
        update={
            "method": "ce",
            "epochs": 1,
            "train_on_val": False,
            "students": dict(students),
            "optimizer": type(recipe.optimizer)(),
            "student": {},
            "ema": type(recipe.ema)(),
            "augment": recipe.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0}),
            "distill": DistillSection(),
            "coordinator": CoordinatorSection(),
        }
    )


def with_teacher(recipe: Recipe, file: str, arch: str | None) -> Recipe:
    """The recipe with the comparison's teacher as a file."""
    section = recipe.teacher
    if section.file is None:
        section = section.model_copy(
            update={"file": file, "arch": arch, "norm": "auto", "pretrained": False, "unseen": 0.0}
        )
    return recipe.model_copy(update={"teacher": section})


def differing(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys in which two recipes differ."""

    def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in content.items():
            items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return items

    left, right = flat(a.model_dump()), flat(b.model_dump())
    return [key for key in {**left, **right} if left.get(key) != right.get(key)]
