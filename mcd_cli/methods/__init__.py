"""The methods by name: what differs between the rows of Table 1, and nothing else. This table is torch-free.

To add a method: one file with one class (see base.py), and one row below; its options go into settings.py.
"""

from __future__ import annotations

from mcd_cli.registry import Table

METHODS = Table(
    "method",
    {
        "ce": "mcd_cli.methods.ce:CE",
        "kd": "mcd_cli.methods.kd:KD",
        "takd": "mcd_cli.methods.takd:TAKD",
        "dgkd": "mcd_cli.methods.dgkd:DGKD",
        "rmc": "mcd_cli.methods.rmc:RMC",
        "meta-distil": "mcd_cli.methods.meta_distil:MetaDistil",
        "mc-distil-nops": "mcd_cli.methods.mc_distil:MCDistilNoPS",
        "mc-distil": "mcd_cli.methods.mc_distil:MCDistil",
        "constant": "mcd_cli.methods.constant:Constant",
    },
)

# A key of [distill] that only some methods take → those methods; tau and lambda are everybody's.
OPTIONS: dict[str, tuple[str, ...]] = {
    "total": ("kd", "takd", "rmc"),
    "drop": ("dgkd",),
    "normalise": ("dgkd",),
    "alpha": ("rmc",),
    "clip": ("rmc",),
    "constants": ("constant",),
}
