"""Ray: each job is a task. Ray restarts the tasks of a lost machine on another one.

Ray holds no result, and its workers import no torch: a task starts the job's process and waits for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from mcd_cli.cluster.jobs import Follower, Job, Share, last_line, start
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.errors import RunFailed, UserError

RETRIES = 3
POLL_SECONDS = 0.5
SKIPPED = -1000  # not the exit code of any process


class RayCluster:
    """The cluster at `ray://HOST:PORT`; without it, that of RAY_ADDRESS, or one that runs here, or a new one here."""

    waits = True

    def __init__(self, where: str, share: Share) -> None:
        self.address = f"ray:{where}" if where else None
        self.share = share

    def run(self, jobs: Sequence[Job], last: Job, emit: Listener) -> None:
        """Run the jobs and show their messages. The tables are left to this process."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default: it hides no GPU
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--on ray: no Ray cluster can be reached ({str(error).splitlines()[0]})") from None
        task = ray.remote(num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_retries=RETRIES)(_work)
        follow = Follower(emit)
        results: dict[str, Any] = {}
        for job in jobs:
            follow.begin(job)
            results[job.name] = task.remote(job, *(results[name] for name in job.needs if name in results))
        waiting, failed = {job.name: job for job in jobs}, {}
        try:
            while waiting:
                done, _ = ray.wait([results[name] for name in waiting], num_returns=1, timeout=POLL_SECONDS)
                follow(waiting)
                for name in [name for name in waiting if results[name] in done]:
                    job = waiting.pop(name)
                    if code := ray.get(results[name]):
                        failed[name] = last_line(job) if code != SKIPPED else "what it needs failed"
                    emit(InfoMessage(f"{name}: {'failed' if code else 'finished'}, {len(waiting)} left"))
        except BaseException:
            for name in waiting:
                ray.cancel(results[name])
            raise
        finally:
            ray.shutdown()
        if failed:
            lines = "; ".join(f"{name}: {line}" for name, line in failed.items())
            raise RunFailed(f"{len(failed)} of {len(jobs)} runs failed ({lines}); the others are finished")


def _work(job: Job, *needed: int) -> int:
    """Runs on a worker: the job's process, unless one that it needs has failed. Returns its exit code."""
    if any(needed):
        return SKIPPED
    process = start(job)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
    finally:
        process.terminate()  # if the task was cancelled: the run saves its state
    return process.returncode
