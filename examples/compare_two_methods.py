"""Compare two methods over several seeds, then read the results from comparison.json.

`python examples/compare_two_methods.py` compares kd with kd at three times the loss weight on the digits, with three
seeds each; options such as `--epochs 5` are passed to `mcd compare`.
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
        sys.exit(code)  # mcd has already printed the reason

    document = json.loads((OUT / "comparison.json").read_text(encoding="utf-8"))
    print(document["endpoint"])
    for contender in document["contenders"]:
        name, accuracy, weight = contender["name"], contender["mean"], contender["total_weight"]
        print(f"{name:10} {accuracy['mean']:.1%} ± {accuracy['std']:.1%}, loss weight {weight:g}")
        if (gain := contender["vs_kd"]) is not None:  # paired over seeds and images, with Holm's correction
            noise = "within noise" if gain["within_noise"] else "above noise"
            print(f"{'over kd':10} {100 * gain['difference']:+.2f} points, {noise} (p = {gain['p_holm']:.3f})")


if __name__ == "__main__":
    main()
