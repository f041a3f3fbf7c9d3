"""Every step at 32 px on a processor with SSE 4.1 alone. A file of its own, so that a worker of its own can run it."""

from __future__ import annotations

from support.processors import steps_under


def test_every_step() -> None:
    steps_under("SSE41", "default", "-k", "not 64")  # 64 px takes minutes there
