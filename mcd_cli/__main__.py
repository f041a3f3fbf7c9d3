"""`python -m mcd_cli` is `mcd`."""

from mcd_cli.cli import main

main()
