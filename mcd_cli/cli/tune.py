"""`mcd tune`: from its options to a recipe whose most important keys were chosen on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.cli.compare import parse_seeds, training_engine
from mcd_cli.cli.distill import check, is_out_of_memory, out_of_memory, resolve
from mcd_cli.cli.options import TuneOptions
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.ladder.folder import make_folder, next_folder
from mcd_cli.quantities import show_percent, show_time
from mcd_cli.recipe.loading import lay_over, parse_setting

if TYPE_CHECKING:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.runner import Comparison
    from mcd_cli.comparison.tuning import Choice
    from mcd_cli.recipe.overlays import Contender
    from mcd_cli.recipe.schema import Recipe


def tune(options: TuneOptions) -> None:
    """Choose values on val and write the recipe. stdout gets its path (or JSON), stderr the values tried."""
    from mcd_cli.comparison.tuning import TUNED, check_grid, default_grid, search, short

    if options.resume is not None:
        raise UserError("mcd tune has no --resume; run the same command again with --out and the folder")
    check(options)
    recipe = resolve(options)
    grid = parse_grid(options.grid) if options.grid else default_grid(recipe)
    trial = short(recipe, options.pilots, options.pilot_epochs)
    check_grid(trial, grid)
    runs = _Runs(options, trial, parse_seeds(options.seeds))
    if options.dry_run:
        runs.estimate(grid)
        return
    try:
        choices = search(trial, grid, runs)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; resume with the same command and --out {runs.folder}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(trial) from None
        raise
    finally:
        runs.view.close()
        with suppress(OSError):  # not empty: something has been trained
            runs.folder.rmdir()
    tuned = lay_over(recipe, {choice.key: choice.best for choice in choices})
    path = runs.folder / TUNED
    path.write_text(_header(choices, trial, runs.seeds) + tuned.to_toml(), encoding="utf-8")
    _print(choices, path, options.json_output)


def parse_grid(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`KEY=VALUE,VALUE,…` → key → values. Raises UserError."""
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--grid takes KEY=VALUE,VALUE,…, for example distill.total=1,3,9; got {text!r}")
        if key.strip() in grid:
            raise UserError(f"--grid names {key.strip()} twice; list all its values in one")
        grid[key.strip()] = tuple(parse_setting(f"{key}={value}")[1] for value in values.split(","))
    return grid


class _Runs:
    """The short runs: cells of one comparison, which gains contenders with each key."""

    def __init__(self, options: TuneOptions, trial: Recipe, seeds: tuple[int, ...]) -> None:
        from mcd_cli.cli.progress import View

        self.options = options
        self.trial = trial
        self.seeds = seeds
        self.contenders: dict[str, Contender] = {}
        self.view: View = View(quiet=options.quiet)
        self.folder = Path()
        if not options.dry_run:
            self.folder = _place(options.out, trial)

    def __call__(self, contenders: Sequence[Contender]) -> Mapping[str, float]:
        """Train what is not trained yet; accuracy on val by contender."""
        from mcd_cli.comparison.tuning import accuracy_on_val

        comparison = self.comparison(contenders)
        comparison.plan.save(self.folder)
        comparison.train()
        comparison.document([], None)
        return accuracy_on_val(comparison)

    def comparison(self, contenders: Sequence[Contender]) -> Comparison:
        from mcd_cli.comparison.plan import PLAN, Plan
        from mcd_cli.comparison.runner import Comparison

        self.contenders |= {contender.name: contender for contender in contenders}
        plan = Plan(self.trial, tuple(self.contenders.values()), self.seeds)
        if (self.folder / PLAN).is_file():
            Plan.load(self.folder).refuse_other_base(plan)
        return Comparison(plan, self.folder, training_engine(self.options, self.view), self.view)

    def estimate(self, grid: Mapping[str, Sequence[Any]]) -> None:
        """Print how many runs there will be and how long they will take, from a few steps of one."""
        from mcd_cli.comparison.tuning import contender, num_runs, value_of
        from mcd_cli.reporting.console import print_json

        first = next(iter(grid))
        cost = self.comparison([contender({first: value_of(self.trial, first)})]).estimate()
        (seconds,) = cost.seconds.values()
        count = num_runs(self.trial, grid) * len(self.seeds)
        total = cost.total_seconds + seconds * (count - len(self.seeds))
        self.view.close()
        if self.options.json_output:
            print_json({"runs": count, "estimate_seconds": total, "recipe": self.trial.model_dump(mode="json")})
            return
        print(self.trial.to_toml())
        print(f"{count} short runs: about {show_time(total)}")


def _place(out: str | None, trial: Recipe) -> Path:
    from mcd_cli.comparison.plan import PLAN

    if out == "":
        raise UserError("--out is empty; name a folder")
    if out is None:
        return next_folder(Path("runs"), f"{Path(trial.dataset).resolve().name}-tune")[0]
    if not (Path(out) / PLAN).is_file():
        with suppress(FileExistsError):
            make_folder(Path(out))
    return Path(out)


def _header(choices: Sequence[Choice], trial: Recipe, seeds: Sequence[int]) -> str:
    students = ", ".join(trial.students)
    of_seeds = ", ".join(map(str, seeds))
    lines = [
        f"Tuned by mcd on val, one key after another: {trial.epochs} epochs, students {students}, seed {of_seeds}."
    ]
    lines += [f"{choice.key}: {_tried(choice)}" for choice in choices]
    return "".join(f"# {line}\n" for line in lines)


def _tried(choice: Choice) -> str:
    from mcd_cli.comparison.tuning import written

    return ", ".join(f"{written(value)} → {show_percent(accuracy)}" for value, accuracy in choice.val.items())


def _print(choices: Sequence[Choice], path: Path, json_output: bool) -> None:
    from mcd_cli.comparison.tuning import written
    from mcd_cli.reporting.console import print_json, results, table

    if json_output:
        keys = [
            {
                "key": choice.key,
                "best": choice.best,
                "val": [{"value": value, "accuracy": accuracy} for value, accuracy in choice.val.items()],
            }
            for choice in choices
        ]
        print_json({"recipe": str(path), "keys": keys})
        return
    console = results()
    drawn = table(console, "key", "best", "accuracy on val by value")
    for choice in choices:
        drawn.add_row(choice.key, written(choice.best), _tried(choice))
    console.print(drawn)
    console.print(f"the tuned recipe: mcd distill --recipe {path}")
