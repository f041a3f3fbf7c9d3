"""Compare two methods over seeds, then read the comparison's document.

    python examples/compare_two_methods.py                        kd and kd at three times its weight on the digits
    python examples/compare_two_methods.py --epochs 5             options go to `mcd compare`
"""

import json
import subprocess
import sys
from pathlib import Path

OUT = Path("runs/example-comparison")
METHODS, SEEDS = "kd,kd-total-3", "0,1,2"


def main() -> None:
    command = [sys.executable, "-m", "mcd_cli", "compare", "--methods", METHODS, "--seeds", SEEDS, "--out", str(OUT)]
    subprocess.run([*command, "--quiet", *sys.argv[1:]], check=True)

    document = json.loads((OUT / "comparison.json").read_text(encoding="utf-8"))
    print(document["endpoint"])
    for contender in document["contenders"]:
        mean, std, weight = contender["mean"]["mean"], contender["mean"]["std"], contender["total_weight"]
        print(f"{contender['name']:12} {mean:.1%} ± {std:.1%} over {len(document['seeds'])} seeds, total weight {weight:g}")
    for pair in document["controls"]:  # paired over seeds and images, corrected by Holm
        noise = "within noise" if pair["within_noise"] else "above noise"
        print(f"{pair['a']} − {pair['b']}: {100 * pair['difference']:+.2f} points, {noise} (p = {pair['p_holm']:.3f})")


if __name__ == "__main__":
    main()
