"""Resizing as OpenCV does it, in numpy: what the model was trained and measured with, without needing OpenCV.

Each resize is a matrix along the rows and one along the columns. `resize_area` is cv2.INTER_AREA (shrinking),
`resize_cubic` is OpenCV 5's cv2.INTER_CUBIC of 8-bit images (a = -0.75; OpenCV 4 rounds the weights to 11 bits, which
moves one pixel in twenty by one level), `resize_nearest` is cv2.INTER_NEAREST; `edge_distance` is
cv2.distanceTransform(DIST_L2, 5), up to a limit.
"""

from __future__ import annotations

import math

import numpy as np


def resize_area(image: np.ndarray, size: int) -> np.ndarray:
    """Shrink a square image [s, s] or [s, s, c] by averaging; uint8 is rounded, float32 stays."""
    side = image.shape[0]
    if side % size == 0:  # whole pixels: plain means, in whole numbers where they are
        step = side // size
        blocks = image.reshape(size, step, size, step, *image.shape[2:])
        if image.dtype != np.uint8:
            return blocks.mean((1, 3), dtype=np.float32)
        total = blocks.sum((1, 3), dtype=np.int64)
        if step == 2:
            return ((total + 2) >> 2).astype(np.uint8)
        return np.rint(total.astype(np.float32) * np.float32(1 / step**2)).astype(np.uint8)
    matrix = _area_matrix(side, size)
    result = _along_both(matrix, image.astype(np.float32))
    return np.clip(np.rint(result), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else result


def resize_cubic(image: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a square uint8 image [s, s, c]."""
    result = _along_both(_cubic_matrix(image.shape[0], size), image.astype(np.float32))
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def resize_nearest(image: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a square image, repeating pixels."""
    index = np.minimum(np.floor(np.arange(size) * (image.shape[0] / size)).astype(int), image.shape[0] - 1)
    return image[index][:, index]


def edge_distance(inside: np.ndarray, limit: int) -> np.ndarray:
    """Distance of every pixel inside to the nearest outside, up to `limit`: steps of 1, 1.4 (diagonal), 2.1969."""
    steps = [(0, 1, 1.0), (1, 1, 1.4), (1, 2, 2.1969), (2, 1, 2.1969)]
    moves = {(sy * dy, sx * dx, cost) for a, b, cost in steps for dy, dx in ((a, b), (b, a)) for sy in (1, -1)
             for sx in (1, -1)}  # fmt: skip
    height, width = inside.shape
    distance = np.where(inside, np.float32(limit + 1), np.float32(0))
    for _ in range(limit + 1):
        padded = np.pad(distance, 2, constant_values=limit + 1)
        for dy, dx, cost in moves:
            shifted = padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
            distance = np.minimum(distance, shifted + np.float32(cost))
    return distance


def _along_both(matrix: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Apply a matrix [new, old] to columns, then to rows."""
    rows, columns = image.shape[:2]
    wide = np.einsum("nc,rck->rnk", matrix, image.reshape(rows, columns, -1), optimize=True)
    result = np.tensordot(matrix, wide, axes=(1, 0))
    return result.reshape(*result.shape[:2], *image.shape[2:])


def _area_matrix(source: int, target: int) -> np.ndarray:
    scale = source / target
    matrix = np.zeros((target, source), np.float32)
    for place in range(target):
        start = place * scale
        end = start + scale
        width = min(scale, source - start)
        first = math.ceil(start)
        last = min(math.floor(end), source - 1)
        first = min(first, last)
        if first - start > 1e-3:
            matrix[place, first - 1] += np.float32((first - start) / width)
        matrix[place, first:last] += np.float32(1 / width)
        if end - last > 1e-3:
            matrix[place, last] += np.float32(min(min(end - last, 1.0), width) / width)
    return matrix


def _cubic_matrix(source: int, target: int) -> np.ndarray:
    a, one = np.float32(-0.75), np.float32(1)
    places = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    floor = np.floor(places).astype(int)
    x = places - floor.astype(np.float32)
    first = ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a
    second = ((a + 2) * x - (a + 3)) * x * x + one
    third = ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + one
    weights = [first, second, third, one - first - second - third]
    matrix = np.zeros((target, source), np.float32)
    for tap, weight in enumerate(weights):
        np.add.at(matrix, (np.arange(target), (floor - 1 + tap).clip(0, source - 1)), weight)
    return matrix
