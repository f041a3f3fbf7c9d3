"""`python -m mcd_cli` is `mcd`."""

from mcd_cli.cli import enter

enter()
