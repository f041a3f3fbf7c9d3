"""The tensor arithmetic: losses, the meta-gradient (Eq. 9), BatchNorm variants, sums over processes.

Each is exact and tested against an independent route (tests/ops/); change none without it.
"""
