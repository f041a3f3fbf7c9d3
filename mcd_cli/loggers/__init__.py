"""Experiment trackers that `mcd distill --log` writes to. The table imports none of them.

To add one, write a class like those here (see `log.Service`) and add a row below; its package goes into pyproject.toml
as an extra of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mcd_cli.registry import Row, Table


@dataclass(frozen=True)
class LoggerSpec(Row):
    """A tracker: its class, the package it needs, and where its runs appear."""

    package: str
    summary: str


LOGGERS = Table(
    "logger",
    {
        "tensorboard": LoggerSpec(
            "mcd_cli.loggers.tensorboard:TensorBoard", "tensorboard", "event files in the run's `tensorboard/`"
        ),
        "wandb": LoggerSpec(
            "mcd_cli.loggers.wandb:WandB",
            "wandb",
            "the project `WANDB_PROJECT` (`mcd`); offline, in the run's `wandb/`, unless you are logged in",
        ),
        "mlflow": LoggerSpec(
            "mcd_cli.loggers.mlflow:MLflow",
            "mlflow",
            "the server `MLFLOW_TRACKING_URI`, in the experiment `MLFLOW_EXPERIMENT_NAME` (`mcd`)",
        ),
    },
)


def names_of(text: str | None) -> tuple[str, ...]:
    """The loggers of "a,b", each once. Raises UserError for an unknown name."""
    names: Iterable[str] = () if text is None else (name.strip() for name in text.split(","))
    return tuple(dict.fromkeys(LOGGERS.check(name) for name in names))
