"""Every step on a processor with the first AVX-512. A file of its own, so that a worker of its own can run it."""

from __future__ import annotations

from support.processors import steps_under


def test_every_step() -> None:
    steps_under("AVX512_CORE", None)
