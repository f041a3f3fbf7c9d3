"""Tests the contrasts that a protocol names, on the seeds whose cells are finished.

    python benchmarks/protocol_contrasts.py COMPARISON PROTOCOL.toml [--out RESULT.json]

PROTOCOL.toml holds families of pairs, and what counts as equivalent, in points:

    [families.primary]
    pairs = [["mc-dist", "kd"], ["mc-dist", "dkd"]]
    equivalent = 0.5

Each family is corrected by Holm. Two contenders are equivalent if the 90 % interval of their difference lies within
± `equivalent` (two one-sided tests at 5 %). Seeds on which a contender of the family is missing are left out of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from mcd_cli.comparison.cells import Trained, is_finished_cell, owners, read_cell
from mcd_cli.comparison.document import Entry, contrasts_of
from mcd_cli.comparison.plan import Plan
from mcd_cli.comparison.statistics import Contrast
from mcd_cli.errors import UserError


def finished(plan: Plan, folder: Path) -> dict[tuple[str, int], Trained]:
    """(contender, seed) → its results, for every finished cell."""
    owner = owners(plan.cells())
    done = {cell.name: cell for cell in owner.values() if is_finished_cell(folder, cell)}
    read = {name: read_cell(folder, cell, cell.recipe) for name, cell in done.items()}
    return {place: read[cell.name] for place, cell in owner.items() if cell.name in read}


def family(
    pairs: Sequence[tuple[str, str]], seeds: Sequence[int], cells: Mapping[tuple[str, int], Trained]
) -> tuple[list[int], dict[tuple[str, str], Contrast]]:
    """The seeds that all contenders of the pairs have, and the pairs' contrasts on them."""
    names = sorted({name for pair in pairs for name in pair})
    common = [seed for seed in seeds if all((name, seed) in cells for name in names)]
    if not common:
        return [], {}
    rows = {name: Entry(name, tuple(cells[name, seed] for seed in common)) for name in names}
    return common, contrasts_of(pairs, rows)


def points(contrast: Contrast, equivalent: float) -> dict[str, Any]:
    """In points: the difference, its 95 % interval, and whether it lies within ± equivalent (TOST at 5 %)."""
    half90 = contrast.se * float(student_t.ppf(0.95, contrast.df))
    within = abs(100 * contrast.difference) + 100 * half90 < equivalent
    return {
        "difference": round(100 * contrast.difference, 3),
        "low": round(100 * contrast.low, 3),
        "high": round(100 * contrast.high, 3),
        "p": contrast.p,
        "p_holm": contrast.p_holm,
        "equivalent": within,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("protocol", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    families = tomllib.loads(arguments.protocol.read_text(encoding="utf-8"))["families"]
    try:
        plan = Plan.load(arguments.comparison)
        cells = finished(plan, arguments.comparison)
    except UserError as error:
        sys.exit(str(error))
    result: dict[str, Any] = {"means": _means(plan, cells), "families": {}}
    for name, content in families.items():
        seeds, found = family([(a, b) for a, b in content["pairs"]], plan.seeds, cells)
        equivalent = float(content.get("equivalent", 0.5))
        rows = {f"{a} - {b}": points(contrast, equivalent) for (a, b), contrast in found.items()}
        result["families"][name] = {"seeds": seeds, "contrasts": rows}
        print(f"{name}: seeds {', '.join(map(str, seeds)) or 'none finished'}")
        for pair, row in rows.items():
            print(
                f"  {pair}: {row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}), "
                f"p {row['p']:.3g}, Holm {row['p_holm']:.3g}{', equivalent' * row['equivalent']}"
            )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _means(plan: Plan, cells: Mapping[tuple[str, int], Trained]) -> dict[str, dict[str, float]]:
    """contender → seed → test accuracy in % at the last epoch, averaged over students."""
    means: dict[str, dict[str, float]] = {}
    for contender in plan.contenders:
        for seed in plan.seeds:
            if (contender.name, seed) in cells:
                last = cells[contender.name, seed].last
                accuracy = sum(float(right.mean()) for right in last.values()) / len(last)
                means.setdefault(contender.name, {})[str(seed)] = round(100 * accuracy, 2)
    return means


if __name__ == "__main__":
    main()
