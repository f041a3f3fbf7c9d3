"""A long run of the property tests: `python -m tests.support.fuzz --examples 20000 --seed 1`; prints inputs per reader.

--examples is of the cheap readers; expensive ones (a network is built, a data set decoded) get a fixed share.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


class Counts:
    """Prints, at the end, how many inputs each reader was given and how many of them it refused."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from support.hostile import refused, tried

        for reader in sorted(tried):
            terminalreporter.write_line(f"{reader:24} {tried[reader]:9,} inputs, {refused[reader]:9,} refused")
        terminalreporter.write_line(f"{'all':24} {tried.total():9,} inputs, {refused.total():9,} refused")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000, help="inputs for each cheap test")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="tests whose name holds this, as pytest's -k")
    asked = parser.parse_args()
    os.environ["MCD_FUZZ_EXAMPLES"] = str(asked.examples)
    print(f"seed {asked.seed}, {asked.examples} examples", flush=True)
    files = [str(path) for path in sorted(TESTS.glob("hostile/test_*.py"))]
    options = ["-p", "no:cacheprovider", f"--hypothesis-seed={asked.seed}", *(["-k", asked.only] if asked.only else [])]
    return int(pytest.main([*files, *options], plugins=[Counts()]))


if __name__ == "__main__":
    sys.exit(main())
