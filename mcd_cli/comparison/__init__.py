"""Several methods under one protocol: cells (one run each), statistics, tables, figures, the paper's own numbers.

It trains through the engine alone; a new table or figure is drawn from comparison.json, never from a run in memory.
"""
