"""A run's folder, its manifest `ladder.json`, and the use of finished students: choose, open, time.

No torch until weights are loaded. Stored names are promises to old runs: a new field needs a default, none is renamed.
"""
