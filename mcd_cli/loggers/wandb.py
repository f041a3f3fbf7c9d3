"""Weights & Biases: online if the user has logged in, otherwise offline in the run's folder."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import wandb

from mcd_cli.recipe.schema import Recipe


class WandB:
    """See `log.Service`. Every stage has a step axis of its own, `STAGE/step`."""

    def __init__(self, folder: Path, run: str, recipe: Recipe) -> None:
        self.run = run or uuid.uuid4().hex[:8]
        self.groups: set[str] = set()
        self.handle = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mcd"),
            name=folder.resolve().name,
            dir=folder,
            id=self.run,
            resume="allow",
            config=recipe.model_dump(mode="json", exclude={"data_root", "checkpoint"}),
            mode=_mode(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if group not in self.groups:
            self.handle.define_metric(f"{group}/step", hidden=True)
            self.handle.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self.groups.add(group)
        self.handle.log({f"{group}/step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def picture(self, file: Path) -> None:
        self.handle.log({file.stem: wandb.Image(str(file))})

    def close(self, finished: bool) -> None:
        self.handle.finish(exit_code=0 if finished else 1)


def _mode() -> Literal["offline"] | None:
    """None, wandb's own choice, if the user has chosen or has logged in. Its question for a key would block the run."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    logged_in = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
    return None if logged_in or "WANDB_MODE" in os.environ else "offline"
