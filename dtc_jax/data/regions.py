"""A mask of several places, one product in each: which of its parts are places, and which are noise."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.masks import bounding_box

Regions = Literal["each", "largest", "together"]
"""What a mask of several parts means: a product in each part, in the largest alone, or one over all of them."""

SPECK_SHARE = 0.01
"""A part of less than this share of the largest one's area is a speck."""

SPECK_PIXELS = 64
"""As is one of fewer pixels than a block of JPEG's, if it has less than a tenth of the largest one's area."""

GAP_SHARE = 0.01
"""Parts that are closer than this share of the mask's shorter side are one: a hairline, not two places."""


def split_regions(mask: UInt8[np.ndarray, "h w"], regions: Regions = "each") -> list[UInt8[np.ndarray, "h w"]]:
    """The places of a mask, each as a mask of its own, from left to right and then from top to bottom.

    Parts touch at a corner at least, or are closer than `GAP_SHARE` says. Specks, which JPEG's noise and a slip of the
    brush leave, are no places, and nothing is painted there; a mask's largest part is never one.

    Args:
        mask: {0, 1}, 1 = fill; not empty.
        regions: `together` is the mask itself, specks and all.

    Returns:
        Masks {0, 1} of the same size that have no pixel in common; at least one.

    Raises:
        ValueError: an empty mask, or `regions` unknown.
    """
    if regions not in get_args(Regions):
        raise ValueError(f"regions must be one of {', '.join(get_args(Regions))}, not {regions!r}")
    if not mask.any():
        raise ValueError("the mask is empty")
    if regions == "together":
        return [mask]
    y0, x0, y1, x1 = bounding_box(mask)
    labels = _labels(mask[y0:y1, x0:x1], int(GAP_SHARE * min(mask.shape)))
    areas = np.bincount(labels.reshape(-1))
    areas[0] = 0
    largest = int(areas.max())
    places = [
        label
        for label, area in enumerate(areas)
        if area == largest
        or (area >= SPECK_SHARE * largest and (area >= SPECK_PIXELS or area >= 0.1 * largest) and area > 0)
    ]
    if regions == "largest":
        places = [int(np.argmax(areas))]
    if len(places) == 1 and areas.sum() == largest:
        return [mask]
    found = []
    for place in places:
        region = np.zeros_like(mask)
        region[y0:y1, x0:x1] = labels == place
        found.append(region)
    return sorted(found, key=_left_then_top)


def _labels(mask: UInt8[np.ndarray, "h w"], gap: int) -> np.ndarray:
    """The part, from 1, that each pixel of the mask belongs to; 0 outside."""
    joined = (mask != 0).astype(np.uint8)
    if gap > 1:
        # Grown by half of the gap on every side, what is closer than the gap touches.
        joined = cv2.dilate(joined, np.ones((gap, gap), np.uint8))
    _, labels = cv2.connectedComponents(joined, connectivity=8)
    return np.where(mask != 0, labels, 0)


def _left_then_top(region: UInt8[np.ndarray, "h w"]) -> tuple[int, int]:
    y0, x0, _, _ = bounding_box(region)
    return x0, y0
