"""`python -m mcd_cli` is `mcd`."""

from mcd_cli.cli.app import main

main()
