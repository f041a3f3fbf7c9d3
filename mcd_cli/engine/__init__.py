"""The engine: one training loop (Algorithm 1) for all methods. It emits events and neither prints nor plots.

Names in checkpoints must not change, because old runs use them; a resumed run is bit-identical to an uninterrupted one.
"""
