"""Recipes: everything that decides a run's result, typed and frozen, and how their files are read. No torch.

A new key in schema.py changes every recipe's hash: runs from before can then not be resumed.
"""
