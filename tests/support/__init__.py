"""What several tests use: small runs, images, the command line in this process, hostile input, known numbers."""

from __future__ import annotations

from pathlib import Path

import mcd_cli

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent  # the checkout: documents, recipes, examples
INSTALLED = Path(mcd_cli.__file__).parents[1]  # for the PYTHONPATH of a child process: the mcd_cli under test
