"""Several methods under one protocol: cells (one run each), statistics, tables, figures, the paper's own numbers.

Training happens only in the engine. Draw new tables and figures from comparison.json, never from a run in memory.
"""
