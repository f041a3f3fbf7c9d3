"""A comparison as submitit jobs: the scripts that sbatch gets, and a preemption on the local executor."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mcd_cli.cluster import CLUSTERS
from mcd_cli.cluster.jobs import Job, Share, levels
from mcd_cli.cluster.slurm import Slurm
from mcd_cli.engine.events import Event
from mcd_cli.errors import UserError
from mcd_cli.ladder.folder import PREDICTIONS
from support.commands import mcd

pytest.importorskip("submitit", reason="the extra `slurm` is not installed")


def job(name: str, *needs: str) -> Job:
    return Job(name, needs, ("true",), "/", Path("/nowhere"))


def test_levels_are_those_of_the_needs() -> None:
    jobs = [job("teacher"), job("warm", "teacher"), job("kd", "teacher", "warm"), job("ce", "warm"), job("takd", "kd")]
    assert [[one.name for one in group] for group in levels(jobs)] == [["teacher"], ["warm"], ["kd", "ce"], ["takd"]]
    assert levels(jobs[3:]) == [[jobs[3], jobs[4]]]  # what is finished is not waited for


def test_what_sbatch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts that submitit passes to a replaced sbatch: an array per level, dependent on the previous one."""
    numbers = iter(range(100, 200))
    seen: list[str] = []

    def sbatch(self: object, command: list[str]) -> str:
        seen.append(Path(command[-1]).read_text())
        return f"Submitted batch job {next(numbers)}"

    import submitit
    from submitit.core.utils import CommandFunction

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    monkeypatch.setattr(CommandFunction, "__call__", lambda self, *args: sbatch(self, self.command))
    jobs = [job("teacher"), job("kd", "teacher"), job("ce", "teacher")]
    messages: list[Event] = []
    slurm = Slurm("partition=small,time=90", Share(cpus=4, gpus=1))
    assert not slurm.waits
    last = Job("tables", (), ("true",), "/", tmp_path / "logs" / "tables.log")
    slurm.run(jobs, last, messages.append)
    assert [text.count("--dependency=afterok") for text in seen] == [0, 1, 1]
    assert "#SBATCH --dependency=afterok:101" in seen[2]
    assert "#SBATCH --array=0-1" in seen[1]
    for text in seen:
        for line in ("--partition=small", "--time=90", "--cpus-per-task=4", "--gres=gpu:1"):
            assert f"#SBATCH {line}" in text


@pytest.mark.timeout(300)
def test_a_preempted_job_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the local executor, the job of kd gets the signal that SLURM sends before a preemption."""
    args = ["--recipe", "tiny.toml", "--methods", "kd", "--seeds", "0", "--threads", "1"]
    assert mcd(monkeypatch, "compare", *args, "--out", "alone") == 0
    preemption = threading.Thread(target=_preempt, args=(place / "jobs",), daemon=True)
    preemption.start()
    assert mcd(monkeypatch, "compare", *args, "--out", "jobs", "--on", "slurm:cluster=local") == 0
    preemption.join(timeout=1)
    assert not preemption.is_alive()
    said = (place / "jobs" / "logs" / "kd-seed0.log").read_text()
    assert said.count("1 of 1: kd, seed 0") == 2
    assert "resuming from step" in said
    files = [place / folder / "cells" / "kd-seed0" / PREDICTIONS for folder in ("alone", "jobs")]
    assert files[0].read_bytes() == files[1].read_bytes()


def _preempt(comparison: Path) -> None:
    """Send submitit's signal to the process that runs the job of kd, once it trains."""
    log = comparison / "logs" / "kd-seed0.log"
    while not log.is_file() or "distill: " not in log.read_text():
        time.sleep(0.02)
    for folder in Path("/proc").glob("[0-9]*"):
        arguments = (folder / "cmdline").read_bytes().decode().split("\0") if (folder / "cmdline").exists() else []
        if "--only" in arguments and "kd-seed0" in arguments:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            os.kill(parent, signal.SIGUSR2)
            return


def test_mistakes_are_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="give options of sbatch"):
        Slurm("gpu", Share())
    assert mcd(monkeypatch, "compare", "--recipe", "tiny.toml", "--methods", "kd", "--on", "slrm") == 2
    assert "unknown cluster 'slrm'; did you mean slurm?" in capsys.readouterr().err
    assert set(CLUSTERS) == {"ray", "slurm"}
