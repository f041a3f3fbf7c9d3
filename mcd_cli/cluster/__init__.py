"""What `mcd compare --on` can give the runs of a comparison to. The table imports none of them.

To add one, write a class like those here (see `jobs.Cluster`) and add a row below; its package goes into pyproject.toml
as an extra of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcd_cli.registry import Row, Table


@dataclass(frozen=True)
class ClusterSpec(Row):
    """A cluster: its class, the package it needs, and how `--on` names it."""

    package: str
    usage: str


CLUSTERS = Table(
    "cluster",
    {
        "ray": ClusterSpec("mcd_cli.cluster.ray_cluster:RayCluster", "ray", "ray, or ray://HOST:PORT"),
        "slurm": ClusterSpec("mcd_cli.cluster.slurm:Slurm", "submitit", "slurm, or slurm:OPTION=VALUE,… of sbatch"),
    },
)
