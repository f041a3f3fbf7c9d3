"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from mcd_cli.recipe.schema import Recipe


class TensorBoard:
    """See `log.Service`."""

    def __init__(self, folder: Path, run: str, recipe: Recipe) -> None:
        self.run = run or "tensorboard"
        self.writer = SummaryWriter(str(folder / self.run))
        if not run:
            self.writer.add_text("recipe", f"```toml\n{recipe.to_toml()}\n```")

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)
        self.writer.flush()

    def picture(self, file: Path) -> None:
        with Image.open(file) as image:
            self.writer.add_image(file.stem, np.asarray(image.convert("RGB")), dataformats="HWC")

    def close(self, finished: bool) -> None:
        self.writer.close()
