"""Recipes: every setting that decides a run's result, typed and frozen, and the reader of recipe files. No torch.

A new key in schema.py belongs in ADDED, too. Otherwise it changes every recipe's hash, and older runs cannot resume.
"""
