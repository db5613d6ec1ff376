"""Training: objective, step, sharding, checkpoints and the loop.

One concern per file; `loop.train` reads from top to bottom.
"""
