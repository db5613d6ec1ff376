"""Distances of two sets of images by their features: Frechet distance and kernel distance, with their spread.

FID is the Frechet distance of Inception's features (Heusel et al., 2017, arXiv:1706.08500), KID their kernel distance
(Binkowski et al., 2018, arXiv:1801.01401). Features are kept, images are not; arithmetic is in float64 on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_ROWS = 512
"""Rows of a kernel matrix that are held at a time."""


class Spread(NamedTuple):
    """A figure of whole sets."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def covariance_factor(
    features: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n"] | None = None
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "r d"]]:
    """Mean, and a factor F of the sample covariance, F.T @ F, with at most d rows.

    Args:
        features: One row per image, at least two.
        weights: How often each counts (of a bootstrap's resample); None: once.
    """
    values = np.asarray(features, np.float64)
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    total = counts.sum()
    mean = counts @ values / total
    factor = (values - mean)[counts > 0] * np.sqrt(counts[counts > 0] / (total - 1))[:, None]
    if factor.shape[0] > factor.shape[1]:
        factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return mean, factor


def frechet_distance(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    weights: Float[np.ndarray, "n"] | None = None,
    other_weights: Float[np.ndarray, "m"] | None = None,
) -> float:
    """Squared Frechet distance of the Gaussians with the sets' means and sample covariances (Heusel et al., eq. 6).

    The trace of the square root of the product of covariances F.T F and G.T G is the sum of the singular values of
    F G.T: exact also where there are fewer images than features, without a small number on the diagonal.

    Args:
        features: Of one set, n >= 2.
        others: Of the other, m >= 2.
        weights: See `covariance_factor`.
        other_weights: The same.
    """
    mean, factor = covariance_factor(features, weights)
    other_mean, other_factor = covariance_factor(others, other_weights)
    cross = np.linalg.svd(factor @ other_factor.T, compute_uv=False).sum()
    means = np.sum((mean - other_mean) ** 2)
    return float(means + np.sum(factor**2) + np.sum(other_factor**2) - 2 * cross)


def frechet_spread(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    *,
    resamples: int,
    seed: int,
    paired: bool,
) -> Spread:
    """`frechet_distance` with a bootstrap interval: figure -+ 1.96 standard deviations over the resamples.

    A resample has fewer different images than the set, which makes its distance larger: their percentiles would not
    hold the figure.

    Args:
        features: Of one set.
        others: Of the other.
        resamples: Draws with replacement, each as expensive as the figure; below 2 there is no interval.
        seed: Of the draws.
        paired: Image i of both sets belongs together, so that they are drawn together.
    """
    value = frechet_distance(features, others)
    drawn = _resample_weights(len(features), len(others), resamples, seed, paired)
    return _spread(value, [frechet_distance(features, others, a, b) for a, b in zip(*drawn, strict=True)])


def kernel_distance(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> float:
    """Squared maximum mean discrepancy for the kernel (x.y / d + 1)^3: the unbiased estimate over all pairs.

    Published KIDs are means of this estimate over random subsets of 1000 images; the expectation is the same.

    Args:
        features: Of one set, n >= 2.
        others: Of the other, m >= 2.
    """
    return float(
        _weighted_kernel_distances(features, others, np.ones((1, len(features))), np.ones((1, len(others))))[0]
    )


def kernel_spread(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    *,
    resamples: int,
    seed: int,
    paired: bool,
) -> Spread:
    """`kernel_distance` with a bootstrap interval; arguments as in `frechet_spread`.

    Pairs of an image with itself, which a resample has more of, are left out.
    """
    drawn = _resample_weights(len(features), len(others), resamples, seed, paired)
    weights = [
        np.vstack([np.ones((1, size)), rows]) for size, rows in zip((len(features), len(others)), drawn, strict=True)
    ]
    value, *again = _weighted_kernel_distances(features, others, *weights)
    return _spread(float(value), [float(distance) for distance in again])


def _weighted_kernel_distances(
    features: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "m d"],
    weights: Float[np.ndarray, "r n"],
    other_weights: Float[np.ndarray, "r m"],
) -> Float[np.ndarray, "r"]:
    """One estimate for every row of weights."""
    x, y = np.asarray(features, np.float64), np.asarray(others, np.float64)

    def within(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        diagonal = (np.sum(values**2, axis=1) / values.shape[1] + 1) ** 3
        total = _weighted_sums(values, values, counts, counts) - counts**2 @ diagonal
        return total / (counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1))

    across = _weighted_sums(x, y, weights, other_weights) / (weights.sum(axis=1) * other_weights.sum(axis=1))
    return within(x, weights) + within(y, other_weights) - 2 * across


def _weighted_sums(x: np.ndarray, y: np.ndarray, weights: np.ndarray, other_weights: np.ndarray) -> np.ndarray:
    """Sum over all pairs of kernel times both weights, for every row of weights; a part of the kernel at a time."""
    total = np.zeros(len(weights))
    for start in range(0, len(x), _ROWS):
        kernel = (x[start : start + _ROWS] @ y.T / x.shape[1] + 1) ** 3
        total += np.sum((weights[:, start : start + _ROWS] @ kernel) * other_weights, axis=1)
    return total


def _resample_weights(n: int, m: int, resamples: int, seed: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """How often every image is in every resample, [resamples, n] and [resamples, m]."""
    random = np.random.default_rng(seed)
    first = random.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    second = first if paired else random.multinomial(m, np.full(m, 1 / m), size=resamples).astype(np.float64)
    return first, second


def _spread(value: float, again: list[float]) -> Spread:
    if len(again) < 2:
        return Spread(value, float("nan"), float("nan"))
    half = 1.96 * float(np.std(again, ddof=1))
    return Spread(value, value - half, value + half)
