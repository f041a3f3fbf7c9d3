"""Several methods under one protocol: cells, statistics, tables, figures."""
