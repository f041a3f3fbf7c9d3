"""`python -m mcd_cli` is `mcd`."""

from mcd_cli.cli.app import enter

enter()
