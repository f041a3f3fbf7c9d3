"""The command line: one file per command, and options.py with every flag.

This folder decides what a user types and sees; the folders below it do the work. Nothing here imports torch early.
"""
