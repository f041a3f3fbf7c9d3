"""`mcd distill --log`: what each tracker stored is read back with the tracker's own reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcd_cli.cli.distill import distill
from mcd_cli.cli.options import DistillOptions
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.ladder.folder import LOGGED
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.metrics import read_metrics
from mcd_cli.loggers import LOGGERS, names_of
from mcd_cli.loggers.log import figures
from support.runs import signal_at, tiny_recipe

for spec in LOGGERS.values():
    pytest.importorskip(spec.package)

Point = tuple[str, int, float]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with every logger, interrupted in its method's stage and resumed without --log."""
    place = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{place}/mlruns")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("WANDB_MODE", "offline")
        recipe = place / "tiny.toml"
        recipe.write_text(tiny_recipe(method="kd").to_toml())
        out = place / "run"
        stop(patch, "distill", 6)
        with pytest.raises(Interrupted):
            distill(DistillOptions(recipe=str(recipe), out=str(out), threads=1, quiet=True, log=",".join(LOGGERS)))
        distill(DistillOptions(resume=str(out), quiet=True, threads=1))
        yield out


def stop(patch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Interrupt the next run at that step."""
    from mcd_cli.cli import progress

    class Stopped(progress.View):
        def __call__(self, event: Any) -> None:
            super().__call__(event)
            interrupt(event)

    interrupt = signal_at(stage, step)
    patch.setattr(progress, "View", Stopped)


def expected(run: Path) -> set[Point]:
    """From metrics.jsonl and ladder.json."""
    points = {
        (f"{record.stage}/{name}", record.step, round(value, 5))
        for record in read_metrics(run)
        for name, value in figures(record).items()
    }
    for student in load_ladder(run).students:
        points.add((f"ladder/{student.name}/test_accuracy", 1, round(student.accuracy.test, 5)))
    return points


def check(found: list[Point], run: Path) -> None:
    """Everything is there, once."""
    kept = [(name, step, round(value, 5)) for name, step, value in found]
    wanted = expected(run)
    assert {name.partition("/")[0] for name, *_ in wanted} >= {"warm-start", "distill", "ladder"}
    assert wanted <= set(kept)
    assert len({(name, step) for name, step, _ in kept}) == len(kept)
    assert {name for name, *_ in kept} >= {"distill/images_per_second", "ladder/resnet10-xxs/macs"}


def test_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stored = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    stored.Reload()
    tags = stored.Tags()
    check([(tag, point.step, point.value) for tag in tags["scalars"] for point in stored.Scalars(tag)], run)
    assert set(tags["images"]) == {"ladder", "training"}


def test_wandb(run: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    found: list[Point] = []
    ids = set()
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    for file in files:
        for data in leveldb_log(file):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                (step,) = [value for key, value in row.items() if key.endswith("/step")] or [0]
                found += [
                    (key, step, value)
                    for key, value in row.items()
                    if "/" in key and not key.endswith("/step") and isinstance(value, int | float)
                ]
    assert len(files) == 2
    assert ids == {json.loads((run / LOGGED).read_text())["wandb"]["run"]}
    check(found, run)


def leveldb_log(file: Path) -> Iterator[bytes]:
    """The records of a wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    content, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = -position % 2**15
        if 0 < left < 7:  # a block's last bytes, too few for a header
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, last
            yield parts
            parts = b""


def test_mlflow(run: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'mcd'")
    (stored,) = client.search_runs([experiment.experiment_id])
    found = [
        (name, point.step, point.value)
        for name in stored.data.metrics
        for point in client.get_metric_history(stored.info.run_id, name)
    ]
    check(found, run)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["optimizer.lr"] == "0.05"
    assert {file.path for file in client.list_artifacts(stored.info.run_id)} == {"ladder.png", "training.png"}


def test_a_tracker_that_fails_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from mcd_cli.loggers.tensorboard import TensorBoard

    def fail(self: Any, *ignored: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorBoard, "log", fail)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_recipe(method="ce", epochs=1, warm_start={"epochs": 0}).to_toml())
    distill(DistillOptions(recipe=str(recipe), out=str(tmp_path / "run"), threads=1, quiet=True, log="tensorboard"))
    assert load_ladder(tmp_path / "run").students
    assert capsys.readouterr().err.count("tensorboard: the server is gone; the run continues without it") == 1


def test_names() -> None:
    assert names_of("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    with pytest.raises(UserError, match=r"'tensorbord'.*tensorboard"):
        names_of("tensorbord")


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, with what to install."""
    monkeypatch.setattr("mcd_cli.loggers.log.find_spec", lambda name: None)
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(tiny_recipe(method="ce").to_toml())
    with pytest.raises(UserError, match=r"--log wandb needs the package wandb; run pip install 'mcd-cli\[wandb\]'"):
        distill(DistillOptions(recipe=str(recipe), out=str(tmp_path / "run"), threads=1, quiet=True, log="wandb"))
