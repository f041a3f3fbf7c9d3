"""The engine: one training loop (Algorithm 1) for every method; it emits events, and prints and draws nothing.

Saved states are promises: what is stored under a name stays under it, and a resumed run is the same to the last bit.
"""
