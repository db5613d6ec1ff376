"""Does a result have its own product's colours? Histograms of the painted region and of every product in the set.

It needs no truth and no weights, and so serves on real photos, where there are neither. It says little more than that
the right product is there: of two alike in colour it knows no difference, and light that a scene throws on a product
counts against the result.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from dtc_jax.data.hints import trim_bounds
from dtc_jax.data.images import on_white
from dtc_jax.data.outline import product_coverage
from dtc_jax.data.references import clean_reference

BINS = 8
"""Of each channel, equally wide: 512 bins of colours."""

HALF = 0.5
"""A pixel is the product's if the product covers this share of it."""

_AT_ONCE = 256
"""Results whose distances to all references are in memory."""

Histogram = Float[np.ndarray, "bins"]


def color_histogram(pixels: UInt8[np.ndarray, "n 3"]) -> Histogram:
    """The shares of `BINS` x `BINS` x `BINS` cells of RGB; they sum to 1.

    Raises:
        ValueError: no pixels.
    """
    if len(pixels) == 0:
        raise ValueError("a histogram needs pixels")
    red, green, blue = (pixels[:, channel].astype(np.uint16) * BINS // 256 for channel in range(3))
    return np.bincount((red * BINS + green) * BINS + blue, minlength=BINS**3) / len(pixels)


def reference_histogram(reference: UInt8[np.ndarray, "h w c"]) -> Histogram:
    """Of a reference's product: without a studio's backdrop, white and transparent margins and holes.

    A photo with anything else behind the product is taken whole, as the hint takes it.
    """
    cleaned = clean_reference(reference)
    y0, x0, y1, x1 = crop = trim_bounds(cleaned)
    product = product_coverage(cleaned, crop) >= HALF
    part = on_white(cleaned)[y0:y1, x0:x1]
    factor = -(-max(part.shape[:2]) // max(product.shape))
    rows, columns = (np.arange(length) // factor for length in part.shape[:2])
    inside = product[rows[:, None], columns[None, :]]
    return color_histogram(part[inside] if inside.any() else part.reshape(-1, 3))


def bhattacharyya_distance(
    first: Float[np.ndarray, "n bins"], second: Float[np.ndarray, "m bins"]
) -> Float[np.ndarray, "n m"]:
    """sqrt(1 - sum sqrt(p q)), from 0 to 1, of every pair: OpenCV's `HISTCMP_BHATTACHARYYA`. Histograms sum to 1."""
    distance: np.ndarray = np.sqrt(np.maximum(1 - np.sqrt(first) @ np.sqrt(second).T, 0))
    return distance


def nearest_is_own(
    results: Float[np.ndarray, "n bins"], references: Float[np.ndarray, "n bins"]
) -> Float[np.ndarray, "n"]:
    """1 where no other reference of the set is nearer to a result than its own, else 0."""
    own = np.zeros(len(results))
    for start in range(0, len(results), _AT_ONCE):
        distances = bhattacharyya_distance(results[start : start + _AT_ONCE], references)
        of_own = np.diagonal(distances, start)
        # Of two cases with one photo neither is nearer, however their sums are rounded.
        own[start : start + _AT_ONCE] = of_own <= distances.min(axis=1) + 1e-9
    return own
