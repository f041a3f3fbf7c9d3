"""Tensor arithmetic: losses, the meta-gradient (Eq. 9), BatchNorm variants, reductions over processes.

All of it is exact, and tests compare each result with an independent computation (tests/ops/).
Run those tests after every change here.
"""
