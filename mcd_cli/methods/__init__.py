"""The methods by name: what differs between the rows of Table 1, and nothing else."""

from __future__ import annotations

from mcd_cli.registry import Table

METHODS = Table(
    "method",
    {
        "ce": "mcd_cli.methods.ce:CE",
        "kd": "mcd_cli.methods.kd:KD",
        "mc-distil": "mcd_cli.methods.mc_distil:MCDistil",
        "mc-distil-nops": "mcd_cli.methods.mc_distil:MCDistilNoPS",
    },
)
