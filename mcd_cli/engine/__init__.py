"""The engine: one loop (Algorithm 1) for every method; it emits events and draws nothing."""
