"""References turned by a few degrees: what training changes in them."""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.data.hints import trim_bounds


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
    # White stays white: only where other pixels go is computed, most often half of the picture or less.
    y0, x0, y1, x1 = trim_bounds(reference, white=255)
    corners = matrix @ np.array([[x0 - 1, x1, x0 - 1, x1], [y0 - 1, y0 - 1, y1, y1], [1, 1, 1, 1]])
    left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 1, side)
    matrix[:, 2] -= left, top
    size = (int(right - left), int(bottom - top))
    result = np.full((side, side, 3), 255, np.uint8)
    result[top:bottom, left:right] = cv2.warpAffine(
        reference, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
    )
    return result
