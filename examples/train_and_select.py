"""Train a ladder, then select a student by its cost.

`python examples/train_and_select.py` trains the demo in a minute or two; options such as `--epochs 3` are passed to
`mcd distill`.
"""

import subprocess
import sys

from mcd_cli import load_ladder

RUN = "runs/example"


def main() -> None:
    command = [sys.executable, "-m", "mcd_cli", "distill", "--out", RUN, "--quiet", *sys.argv[1:]]
    if code := subprocess.run(command).returncode:
        sys.exit(code)  # mcd has already printed the reason

    ladder = load_ladder(RUN)
    for student in ladder.students:  # ordered by decreasing MACs; accuracies are fractions
        print(f"{student.name:15} {student.macs:>10,} MACs {student.params:>8,} params  val {student.accuracy.val:.1%}")

    largest, smallest = ladder.students[0], ladder.students[-1]
    budget = (largest.macs + smallest.macs) // 2
    chosen = ladder.select(max_macs=budget)  # raises NothingFits, naming the nearest miss
    model = chosen.load()  # RGB float32 [n, 3, H, W] in [0, 1] → logits; the model normalises its input itself
    print(f"under {budget:,} MACs: {chosen.name}, {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
