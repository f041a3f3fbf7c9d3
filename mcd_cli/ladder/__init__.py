"""A run's folder, its manifest `ladder.json`, and the use of finished students: choose, open, time.

No torch until weights are loaded. Old runs use the stored names: a new field needs a default, and none is renamed.
"""
