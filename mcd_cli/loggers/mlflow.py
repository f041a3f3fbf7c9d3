"""MLflow: a run in the experiment that the environment names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from mcd_cli.recipe.schema import Recipe

AT_ONCE = 100  # parameters in one request: MLflow's limit
LONGEST = 500  # characters of a parameter, as the oldest servers allow


class MLflow:
    """See `log.Service`."""

    def __init__(self, folder: Path, run: str, recipe: Recipe) -> None:
        self.client = MlflowClient()
        if run:
            self.run = run
            self.client.update_run(run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mcd")
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.run = self.client.create_run(experiment, run_name=folder.resolve().name).info.run_id
        content = recipe.model_dump(mode="json", exclude={"data_root", "checkpoint"}, exclude_none=True)
        params = [Param(key, str(value)[:LONGEST]) for key, value in _flat(content)]
        for start in range(0, len(params), AT_ONCE):
            self.client.log_batch(self.run, params=params[start : start + AT_ONCE])

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run, metrics=[Metric(f"{group}/{name}", value, now, step) for name, value in values.items()]
        )

    def picture(self, file: Path) -> None:
        self.client.log_artifact(self.run, str(file))

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
