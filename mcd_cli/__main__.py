"""Lets `python -m mcd_cli` run the same command line as `mcd`."""

from mcd_cli.cli.app import main

main()
