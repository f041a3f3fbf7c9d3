"""A run's folder, its manifest `ladder.json`, and the use of finished students: choose, open, time. No torch.

Stored names are promises to old runs: a new field needs a default, and none is renamed.
"""
