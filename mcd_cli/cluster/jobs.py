"""Jobs: the runs of a comparison as commands, each a process that any machine with the same files can start."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from mcd_cli.cluster import CLUSTERS
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.errors import UserError

LOGS = "logs"


@dataclass(frozen=True)
class Job:
    """A node of a comparison's graph. command runs in the folder cwd and writes its messages to the file log."""

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    cwd: str
    log: Path


@dataclass(frozen=True)
class Share:
    """What one job takes of its machine: processor cores, and GPUs (0.25: four jobs share one)."""

    cpus: int = 1
    gpus: float = 0.0


class Cluster(Protocol):
    """Runs jobs elsewhere. All state is in the comparison's folder, so a lost job is simply started again."""

    waits: bool
    """Whether `run` returns when the jobs are finished, or as soon as they are queued."""

    def __init__(self, where: str, share: Share) -> None:
        """where: the text after the cluster's name in `--on`, such as an address."""

    def run(self, jobs: Sequence[Job], last: Job, emit: Listener) -> None:
        """Run the jobs, each after those that it needs, then `last`, which writes the tables. Raises McdError."""


def cluster_named(text: str, share: Share) -> Cluster:
    """The cluster of `--on`. Raises UserError for an unknown one, or if its package is missing."""
    name, _, where = text.partition(":")
    package = CLUSTERS[CLUSTERS.check(name)].package
    if find_spec(package) is None:
        raise UserError(f"--on {name} needs the package {package}: pip install 'mcd-cli[{name}]'")
    cluster: Cluster = CLUSTERS.load(name)(where, share)
    return cluster


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start the job's process on this machine; its messages are added to its log."""
    job.log.parent.mkdir(exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(job.command, cwd=job.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def levels(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups, each of which needs only jobs of earlier groups."""
    depth: dict[str, int] = {}
    for job in jobs:
        depth[job.name] = 1 + max((depth[name] for name in job.needs if name in depth), default=-1)
    groups: list[list[Job]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for job in jobs:
        groups[depth[job.name]].append(job)
    return groups


class Follower:
    """Reports the lines that are added to the logs of running jobs."""

    def __init__(self, emit: Listener) -> None:
        self.emit = emit
        self.read: dict[Path, int] = {}

    def begin(self, job: Job) -> None:
        """Leave out what earlier attempts have written."""
        self.read[job.log] = job.log.stat().st_size if job.log.is_file() else 0

    def __call__(self, jobs: Mapping[str, Job]) -> None:
        for name, job in jobs.items():
            if not job.log.is_file():
                continue
            with job.log.open("rb") as file:
                file.seek(self.read.get(job.log, 0))
                lines = file.read().rpartition(b"\n")[0]
            if lines:
                self.read[job.log] = self.read.get(job.log, 0) + len(lines) + 1
                for line in lines.decode(errors="replace").splitlines():
                    self.emit(InfoMessage(f"{name}: {line}"))


def last_line(job: Job) -> str:
    """What a failed job said at the end."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if job.log.is_file() else []
    return lines[-1].removeprefix("mcd: ") if lines else "it wrote no message"
