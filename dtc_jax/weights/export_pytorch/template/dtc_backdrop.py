"""Studio backdrops that are not quite white, made white: the model knows products on pure white."""

from __future__ import annotations

import numpy as np

LEAST_LIGHTNESS, MOST_LIGHTNESS, MOST_CHROMA = 140, 250, 24
"""A backdrop's darkest channel lies between the first two, and its channels differ by at most the third."""

MOST_DEVIATION, PLAIN_SHARE = 48, 0.97
"""The second share of the border's pixels is within the first of the border's median, and all of the backdrop is."""

SMOOTH = 3
"""Between neighbours in a backdrop, after blurring."""


def whiten_backdrop(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [h, w, 3] with its light, plain, neutral backdrop made white; any other photo as it is.

    The backdrop is what can be reached from the border without a step of more than 3 levels and without leaving 48
    levels round the border's median.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.int16)
    median = np.median(border, axis=0)
    plain = np.mean(np.abs(border - median).max(axis=1) <= MOST_DEVIATION) >= PLAIN_SHARE
    light = LEAST_LIGHTNESS <= median.min() <= MOST_LIGHTNESS
    if not (plain and light) or median.max() - median.min() > MOST_CHROMA:
        return image
    candidate = np.abs(image - median).max(axis=2) <= MOST_DEVIATION
    return np.where(_reached(_blur(image), candidate)[..., None], np.uint8(255), image)


def _blur(image: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels, rounded; the border's pixels count again beyond it."""
    height, width = image.shape[:2]
    padded = np.pad(image.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.rint(total / 9).astype(np.int16)


def _reached(values: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """The candidates that small steps join to the border: along rows, then columns, until nothing is added."""
    rows, columns = _runs(values, candidate), _runs(values.transpose(1, 0, 2), candidate.T)
    reached = candidate.copy()
    reached[1:-1, 1:-1] = False
    while True:
        before = reached.sum()
        reached = _spread(reached, rows) & candidate
        reached = _spread(reached.T, columns).T & candidate
        if reached.sum() == before:
            return reached


def _runs(values: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """The number of each pixel's run: neighbours in a row that are candidates and a small step apart share one."""
    joined = candidate[:, 1:] & candidate[:, :-1] & (np.abs(np.diff(values, axis=1)).max(axis=2) <= SMOOTH)
    starts = np.ones(candidate.shape, bool)
    starts[:, 1:] = ~joined
    return np.cumsum(starts).reshape(candidate.shape) - 1


def _spread(reached: np.ndarray, runs: np.ndarray) -> np.ndarray:
    touched = np.zeros(runs[-1, -1] + 1, bool)
    touched[runs[reached]] = True
    return touched[runs]
