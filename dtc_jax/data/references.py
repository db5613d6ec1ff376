"""The reference photo: on white, framed as the reference encoder sees it, turned; for training and sampling."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dtc_jax.data.hints import trim_bounds

LEAST_FILL = 0.7
"""A product whose larger side is less than this share of its white picture is brought closer."""

FILL = 0.85
"""The share it gets then: the middle of what it has in the training references (0.75 to 0.95)."""

WHITE = (255, 255, 255)


def on_white(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB as it is; RGBA composited on white."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def frame_reference(
    reference: UInt8[np.ndarray, "h w c"], size: int, trim: bool = True
) -> UInt8[np.ndarray, "size size 3"]:
    """The reference as the encoder's square: padded with white (a centre crop would cut products), then resized.

    Args:
        reference: RGB, or RGBA, which is composited on white.
        size: side of the result.
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
    before_y, before_x = max(-top, 0), max(-left, 0)
    square = cv2.copyMakeBorder(
        inner,
        before_y,
        side - before_y - inner.shape[0],
        before_x,
        side - before_x - inner.shape[1],
        cv2.BORDER_CONSTANT,
        value=WHITE,
    )
    if side == size:
        return square
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def turn_reference(reference: UInt8[np.ndarray, "h w 3"], degrees: float) -> UInt8[np.ndarray, "s s 3"]:
    """The reference turned counter-clockwise on white, its product centred, nothing of it cut off.

    The white margin round the product stays as wide as it was, so that turning does not look like coming closer.

    Args:
        reference: RGB.
        degrees: between -90 and 90; 0 returns the reference itself.
    """
    if degrees == 0:
        return reference
    y0, x0, y1, x1 = trim_bounds(reference)
    height, width = y1 - y0, x1 - x0
    radians = math.radians(degrees)
    cosine, sine = math.cos(radians), math.sin(radians)
    turned = max(height * cosine + width * abs(sine), width * cosine + height * abs(sine))
    side = max(reference.shape[:2]) - max(height, width) + math.ceil(turned)
    # Pixel (x, y) of the reference goes to (cosine x + sine y, -sine x + cosine y), about the centres.
    center_x, center_y, middle = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, (side - 1) / 2
    matrix = np.array(
        [
            [cosine, sine, middle - cosine * center_x - sine * center_y],
            [-sine, cosine, middle + sine * center_x - cosine * center_y],
        ]
    )
    return cv2.warpAffine(reference, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=WHITE)
