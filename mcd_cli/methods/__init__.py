"""The methods by name: what differs between the rows of Table 1, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcd_cli.registry import Table

if TYPE_CHECKING:
    from mcd_cli.methods.base import Method
    from mcd_cli.recipe import DistillSection

METHODS = Table(
    "method",
    {
        "ce": "mcd_cli.methods.ce:CE",
        "kd": "mcd_cli.methods.kd:KD",
        "mc-distil": "mcd_cli.methods.mc_distil:MCDistil",
        "mc-distil-nops": "mcd_cli.methods.mc_distil:MCDistilNoPS",
    },
)


def build_method(name: str, settings: DistillSection) -> Method:
    """The method of that name with its options."""
    method: Method = METHODS.load(name)(settings)
    return method
