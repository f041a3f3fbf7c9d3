"""SLURM, by submitit: the jobs as arrays, one for the teachers, one for the warm starts, one for the cells.

Each array waits for the one before. A job that is preempted or out of time is queued again and resumes. Nothing has to
run meanwhile: the last job writes the tables.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from mcd_cli.cluster.jobs import Job, Share, last_line, levels, start
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.errors import RunFailed, UserError

MINUTES = 24 * 60
SAVING_SECONDS = 60  # SLURM warns a job so long before it ends it


class Slurm:
    """The queue of `sbatch`. where: options of sbatch, `partition=gpu,time=600`; `cluster=local`: processes here."""

    def __init__(self, where: str, share: Share) -> None:
        options = {}
        for item in filter(None, where.split(",")):
            key, equals, value = item.partition("=")
            if not equals or not key:
                raise UserError(f"--on slurm: give options of sbatch, as in slurm:partition=gpu,time=600; got {item!r}")
            options[key.lstrip("-")] = value
        self.cluster = options.pop("cluster", "slurm")
        self.options = options
        self.share = share
        self.waits = self.cluster == "local"  # which has no queue

    def run(self, jobs: Sequence[Job], last: Job, emit: Listener) -> None:
        """Queue the arrays, each after the one before."""
        import submitit

        before: str | None = None
        groups = [*levels(jobs), [last]]
        for group in groups:
            executor = submitit.AutoExecutor(folder=str(last.log.parent / "submitit"), cluster=self.cluster)
            executor.update_parameters(**self._parameters(before, len(group)))
            try:
                with executor.batch():
                    queued = [executor.submit(Task(job)) for job in group]
            except (submitit.core.utils.FailedJobError, RuntimeError, OSError) as error:
                raise RunFailed(f"sbatch refused the jobs: {str(error).splitlines()[0]}") from None
            before = str(queued[0].job_id).partition("_")[0]
            emit(InfoMessage(f"job {before}: {', '.join(job.name for job in group)}"))
            if self.waits:
                _finish(queued, group)
        emit(InfoMessage(f"messages of the jobs: {last.log.parent}"))

    def _parameters(self, before: str | None, count: int) -> dict[str, Any]:
        if self.cluster != "slurm":
            return {"timeout_min": MINUTES}
        extra = {"dependency": f"afterok:{before}", "kill_on_invalid_dep": "yes"} if before else {}
        extra |= {"gres": f"gpu:{self.share.gpus:g}"} if self.share.gpus else {}
        return {
            "timeout_min": MINUTES,
            "cpus_per_task": self.share.cpus,
            "slurm_array_parallelism": count,
            "slurm_additional_parameters": {**extra, **self.options},
            "slurm_signal_delay_s": SAVING_SECONDS,
        }


class Task:
    """A job as submitit runs it. Asked to leave, it lets the run save its state and is queued again."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        self.process = start(self.job)
        if self.process.wait():
            raise RunFailed(f"{self.job.name} failed: {last_line(self.job)}")

    def checkpoint(self) -> Any:
        """submitit calls it before the job ends."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            with suppress(ChildProcessError):  # not Popen.wait: this signal has interrupted one, which holds its lock
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Task(self.job))


def _finish(queued: Sequence[Any], group: Sequence[Job]) -> None:
    for one, job in zip(queued, group, strict=True):
        one.wait()
        if one.exception() is not None:
            raise RunFailed(f"{job.name} failed: {last_line(job)}")
