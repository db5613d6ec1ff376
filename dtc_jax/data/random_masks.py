"""Random masks for photos that have none: a rectangle or an ellipse anywhere in the picture, drawn for each sample.

As in DreamBooth for inpainting models: what is under the mask is to be painted from what is left and from the prompt.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

SMALLEST = 0.25
"""Least height and width of a mask, as a share of the picture's; the largest is the whole picture."""


def random_mask(seed: int, place: int, size: int, box_probability: float) -> UInt8[np.ndarray, "size size 1"]:
    """The mask of a place in the endless order: {0, 1}, 1 = fill.

    Args:
        seed: Of the data.
        place: Philox is keyed by (seed, place), so that no other place has to be drawn first.
        size: Height and width.
        box_probability: Share of rectangles; the others are ellipses in them.
    """
    # Raw bits, not a Generator's methods: those may change between versions of numpy.
    bits = np.random.Philox(key=np.array([seed, place], np.uint64)).random_raw(6)
    # The first says whether a sample is mirrored (`dtc_jax.data.product`).
    _, box, *extent, y, x = (float(value) / 2**53 for value in bits >> np.uint64(11))
    height, width = (max(1, round(size * (SMALLEST + (1 - SMALLEST) * share))) for share in extent)
    top, left = round(y * (size - height)), round(x * (size - width))
    mask = np.zeros((size, size, 1), np.uint8)
    if box < box_probability:
        mask[top : top + height, left : left + width] = 1
        return mask
    rows = (np.arange(size)[:, None] + 0.5 - top - height / 2) / (height / 2)
    columns = (np.arange(size)[None, :] + 0.5 - left - width / 2) / (width / 2)
    mask[..., 0] = rows**2 + columns**2 <= 1
    return mask
