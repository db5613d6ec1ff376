"""Photos of products as squares on white, as reference encoders take them."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.backdrop import whiten_backdrop
from dtc_jax.data.hints import OPAQUE_TOLERANCE, trim_bounds
from dtc_jax.data.images import on_white

LEAST_FILL = 0.7
"""A product whose larger side is less than this share of its white picture is brought closer."""

FILL = 0.85
"""The share it gets then: the middle of what it has in the training references (0.75 to 0.95)."""

_BICUBIC_SUPPORT = 2
"""Pixels on each side of a pixel that Pillow's bicubic filter takes; when shrinking, as many of the smaller image's."""


def clean_reference(reference: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w d"]:
    """The reference with a plain studio backdrop made white; a cut-out (its transparency is used) as it is."""
    if reference.shape[-1] == 4 and bool((reference[..., 3] < OPAQUE_TOLERANCE).any()):
        return reference
    return whiten_backdrop(on_white(reference))


def frame_reference(
    reference: UInt8[np.ndarray, "h w c"], size: int, trim: bool = True
) -> UInt8[np.ndarray, "size size 3"]:
    """The reference as the encoder's square: see `square_reference`, then resized.

    Args:
        reference: RGB, or RGBA, which is composited on white.
        size: side of the result.
        trim: see `square_reference`.
    """
    return _resize(square_reference(reference, trim), size)


def store_reference(reference: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "r r 3"]:
    """The reference as a record keeps it: clean, square, and at most `size` wide. Smaller ones keep their pixels.

    What trimming cuts off is made wholly white: JPEG would otherwise push some of an almost white margin below white,
    and the hint, trimmed to what is not white, would be another than that of the photo itself.
    """
    square = square_reference(clean_reference(reference))
    square = _resize(square, min(size, square.shape[0]))
    y0, x0, y1, x1 = trim_bounds(square)
    white = np.full_like(square, 255)
    white[y0:y1, x0:x1] = square[y0:y1, x0:x1]
    return white


def square_reference(reference: UInt8[np.ndarray, "h w c"], trim: bool = True) -> UInt8[np.ndarray, "s s 3"]:
    """The reference padded with white to a square (a centre crop would cut products), at its own resolution.

    Args:
        reference: RGB, or RGBA, which is composited on white.
        trim: where a product on white fills little of its picture, cut some of the white off. A photo with no white
            margin is taken whole.
    """
    y0, x0, y1, x1 = trim_bounds(reference) if trim else (0, 0, *reference.shape[:2])
    image = on_white(reference)
    height, width = image.shape[:2]
    product, side = max(y1 - y0, x1 - x0), max(height, width)
    center_y, center_x = height / 2, width / 2
    if product < LEAST_FILL * side:
        side, center_y, center_x = math.ceil(product / FILL), (y0 + y1) / 2, (x0 + x1) / 2
    top, left = round(center_y - side / 2), round(center_x - side / 2)
    inner = image[max(top, 0) : top + side, max(left, 0) : left + side]
    if inner.shape[:2] == (side, side):
        return np.ascontiguousarray(inner)
    before_y, before_x = max(-top, 0), max(-left, 0)
    return cv2.copyMakeBorder(
        inner,
        before_y,
        side - before_y - inner.shape[0],
        before_x,
        side - before_x - inner.shape[1],
        cv2.BORDER_CONSTANT,
        value=(255, 255, 255),
    )


def _resize(square: UInt8[np.ndarray, "s s 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resized by Pillow's bicubic filter, which is widened when shrinking."""
    side = square.shape[0]
    if side == size:
        return square
    # White stays white: only what the filter reaches from other pixels is computed.
    scale = side / size
    reach = _BICUBIC_SUPPORT * max(scale, 1) + 1
    y0, x0, y1, x1 = trim_bounds(square, white=255)
    top, left = (max(math.floor((first - reach) / scale), 0) for first in (y0, x0))
    bottom, right = (min(math.ceil((last + reach) / scale), size) for last in (y1, x1))
    # The filter takes pixels from beyond the box, so that no edge is seen.
    first_y, first_x = (max(math.floor(first * scale - reach), 0) for first in (top, left))
    last_y, last_x = (min(math.ceil(last * scale + reach), side) for last in (bottom, right))
    source = Image.fromarray(square[first_y:last_y, first_x:last_x])
    box = (left * scale - first_x, top * scale - first_y, right * scale - first_x, bottom * scale - first_y)
    box = (*box[:2], min(box[2], source.width), min(box[3], source.height))
    tile = source.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=box)
    result = np.full((size, size, 3), 255, np.uint8)
    result[top:bottom, left:right] = np.asarray(tile)
    return result
