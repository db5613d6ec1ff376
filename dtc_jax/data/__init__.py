"""Data: masks, hints, the procedural world, and (in later modules) files on disk turned into batches.

A batch is a dict of host arrays: ``scene`` [B, H, W, 3], ``reference`` [B, R, R, 3] and ``hint`` [B, H, W, 3] are uint8
RGB; ``mask`` [B, H, W, 1] is uint8 in {0, 1} with 1 = fill; ``index`` [B] is uint32. Nothing here runs a network.
"""
