"""Compare two methods over seeds, then read the comparison's document.

`python examples/compare_two_methods.py` compares kd with kd at three times its loss weight on the digits, three seeds
each; options such as `--epochs 5` go to `mcd compare`.
"""

import json
import subprocess
import sys
from pathlib import Path

OUT = Path("runs/example-comparison")
METHODS, SEEDS = "kd,kd-total-3", "0,1,2"


def main() -> None:
    command = [sys.executable, "-m", "mcd_cli", "compare", "--methods", METHODS, "--seeds", SEEDS, "--out", str(OUT)]
    if code := subprocess.run([*command, "--quiet", *sys.argv[1:]]).returncode:
        sys.exit(code)  # mcd has said why

    document = json.loads((OUT / "comparison.json").read_text(encoding="utf-8"))
    print(document["endpoint"])
    for contender in document["contenders"]:
        name, test, weight = contender["name"], contender["mean"], contender["total_weight"]
        print(f"{name:10} {test['mean']:.1%} ± {test['std']:.1%}, loss weight {weight:g}")
        if (gain := contender["vs_kd"]) is not None:  # paired over seeds and images, corrected by Holm
            noise = "within noise" if gain["within_noise"] else "above noise"
            print(f"{'over kd':10} {100 * gain['difference']:+.2f} points, {noise} (p = {gain['p_holm']:.3f})")


if __name__ == "__main__":
    main()
