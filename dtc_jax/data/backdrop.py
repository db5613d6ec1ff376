"""Studio backdrops that are not quite white, made white.

The model knows products on pure white, and the hint is trimmed to what is not white; shops photograph on papers of 230
or 245 grey, with a soft shadow. Photos with anything else behind the product are left as they are.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

LEAST_LIGHTNESS, MOST_LIGHTNESS = 140, 250
"""A backdrop's darkest channel, of 255. Darker borders are taken for the product's own; lighter ones are white as they
are, and an off-white product must not be lost in them."""

MOST_CHROMA = 24
"""Between a backdrop's channels: it is neutral."""

MOST_DEVIATION = 48
"""Of any channel of a backdrop's pixel from the border's median: its gradient and soft shadows."""

PLAIN_SHARE = 0.97
"""Of the border's pixels that have to be within the deviation, else the border is no backdrop."""

_SMOOTH = 3
"""Between neighbours in a backdrop, after blurring, which leaves JPEG's noise and no contour."""


def whiten_backdrop(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A product photo with its light, plain, neutral backdrop made white; any other photo as it is.

    The backdrop is what can be reached from the border without a step of more than 3 levels and without leaving 48
    levels round the border's median.

    Args:
        image: RGB.

    Returns:
        A new array, or `image` itself if there is no such backdrop.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.int16)
    median = np.median(border, axis=0)
    plain = np.mean(np.abs(border - median).max(axis=1) <= MOST_DEVIATION) >= PLAIN_SHARE
    light = LEAST_LIGHTNESS <= median.min() <= MOST_LIGHTNESS
    if not (plain and light) or median.max() - median.min() > MOST_CHROMA:
        return image
    backdrop = _reached_from_border(image, median)
    return np.where(backdrop[..., None], np.uint8(255), image)


def _reached_from_border(image: UInt8[np.ndarray, "h w 3"], median: np.ndarray) -> Bool[np.ndarray, "h w"]:
    height, width = image.shape[:2]
    blurred = cv2.blur(image, (3, 3), borderType=cv2.BORDER_REPLICATE)
    # OpenCV's mask has a rim of its own; what is not 0 in it is not entered.
    filled = np.ones((height + 2, width + 2), np.uint8)
    lower = np.clip(np.ceil(median - MOST_DEVIATION), 0, 255)
    upper = np.clip(np.floor(median + MOST_DEVIATION), 0, 255)
    filled[1:-1, 1:-1] = cv2.inRange(image, lower, upper) == 0
    barrier = filled.copy()
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
    rows = [(x, y) for y in (0, height - 1) for x in range(width)]
    columns = [(x, y) for x in (0, width - 1) for y in range(height)]
    for x, y in rows + columns:
        if filled[y + 1, x + 1] == 0:
            cv2.floodFill(blurred, filled, (x, y), 0, (_SMOOTH,) * 3, (_SMOOTH,) * 3, flags)
    return ((filled == 2) & (barrier == 0))[1:-1, 1:-1]
