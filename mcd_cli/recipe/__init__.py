"""Recipes: every setting that decides a run's result, typed and frozen, and the reader of recipe files. No torch.

A new key in schema.py changes every recipe's hash, so runs started before it can no longer be resumed.
"""
