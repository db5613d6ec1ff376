"""Pixel metrics inside the mask, on images in [0, 1], and the bootstrap interval of their mean.

All array functions are pure, jittable and batched over the first axis. Only `masked_ssim` looks beyond the mask (its
window reaches five pixels over the edge), so results are pasted back first: see `paste_back`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from numpy.typing import ArrayLike

SSIM_SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window in pixels (Wang et al., 2004, section III.B)."""
SSIM_RADIUS = 5
"""The window is 11x11."""
MAX_PSNR = 100.0
"""PSNR of equal images in dB, in place of infinity."""

_DRAWN_AT_ONCE = 2**22


def paste_back(
    result: Float[Array, "b h w c"], truth: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b h w c"]:
    """The result inside the mask (1), the truth outside (0)."""
    return jnp.where(mask > 0.5, result, truth)


def masked_mean(values: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]) -> Float[Array, "b"]:
    """Mean over channels and over the mask's pixels; 0 where the mask is empty."""
    weights = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(values * weights, axis=(1, 2, 3)) / jnp.maximum(jnp.sum(weights, axis=(1, 2, 3)), 1.0)


def masked_mse(
    image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """Mean squared error over the mask's pixels and channels."""
    return masked_mean(jnp.square(image - truth), mask)


def masked_psnr(
    image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio over the mask's pixels in dB for images in [0, 1]; at most `MAX_PSNR`."""
    floor = 10.0 ** (-MAX_PSNR / 10.0)
    return -10.0 * jnp.log10(jnp.maximum(masked_mse(image, truth, mask), floor))


def _gaussian_matrix(size: int) -> np.ndarray:
    """The Gaussian window along one axis as a [size, size] matrix; the image is mirrored at its edges."""
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window /= window.sum()
    matrix = np.zeros((size, size))
    for offset, weight in zip(offsets, window, strict=True):
        place = (np.arange(size) + offset) % (2 * size)
        np.add.at(matrix, (np.arange(size), np.where(place < size, place, 2 * size - 1 - place)), weight)
    return matrix.astype(np.float32)


def ssim_map(image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Structural similarity at every pixel of every channel (Wang et al., 2004, equation 13), data range 1.

    Gaussian window of 11x11, sigma 1.5, population covariance: the map of
    `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)`.
    """
    image, truth = image.astype(jnp.float32), truth.astype(jnp.float32)
    rows, columns = _gaussian_matrix(image.shape[1]), _gaussian_matrix(image.shape[2])

    def blur(values: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return jnp.einsum("ih,bhwc,jw->bijc", rows, values, columns, precision=jax.lax.Precision.HIGHEST)

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = blur(image), blur(truth)
    variance_x = blur(image * image) - mean_x * mean_x
    variance_y = blur(truth * truth) - mean_y * mean_y
    covariance = blur(image * truth) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))


def masked_ssim(
    image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b"]:
    """`ssim_map` averaged over the channels and the mask's pixels."""
    return masked_mean(ssim_map(image, truth), mask)


def image_psnr(image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio over the whole image in dB for images in [0, 1]; at most `MAX_PSNR`."""
    return masked_psnr(image, truth, jnp.ones_like(image[..., :1]))


def image_ssim(image: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """`ssim_map` averaged over the pixels whose whole window is inside the image, as Wang et al. and scikit-image do.

    Raises:
        ValueError: an image smaller than the window.
    """
    if min(image.shape[1:3]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"SSIM needs more than {2 * SSIM_RADIUS} pixels on each side, not {image.shape[1:3]}")
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return ssim_map(image, truth)[:, inside, inside].mean(axis=(1, 2, 3))


def share_changed(
    image: UInt8[Array, "b h w c"], scene: UInt8[Array, "b h w c"], mask: UInt8[Array, "b h w 1"], tolerance: int = 0
) -> Float[Array, "b"]:
    """Share of pixels outside the mask of which a channel differs by more than `tolerance` of 255; 0 without any."""
    difference = jnp.abs(image.astype(jnp.int32) - scene.astype(jnp.int32)).max(axis=-1, keepdims=True)
    outside = (mask == 0).astype(jnp.float32)
    return masked_mean((difference > tolerance).astype(jnp.float32), outside)


def candidate_distances(
    result: Float[Array, "b h w c"], candidates: Float[Array, "b k h w c"], mask: Float[Array, "b h w 1"]
) -> Float[Array, "b k"]:
    """`masked_mse` between each result and each of its k candidates."""
    return jax.vmap(masked_mse, in_axes=(None, 1, None), out_axes=1)(result, candidates, mask)


def retrieval_rank(own: Float[Array, "b"], distractors: Float[Array, "b k"]) -> Int[Array, "b"]:
    """How many distractors are as near as, or nearer than, the own truth: 0 means retrieved; ties count against it."""
    return jnp.sum(distractors <= own[:, None], axis=1)


def bootstrap_interval(
    values: ArrayLike, seed: int, n: int = 2000, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of independent values, with its percentile bootstrap interval.

    Args:
        values: one number per product, [N], N >= 1.
        seed: of the n resamples (with replacement).
        confidence: share of the resampled means that lies in the interval.

    Returns:
        Mean, lower and upper end.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size == 0:
        raise ValueError("bootstrap_interval needs at least one value")
    random = np.random.default_rng(seed)
    rows = max(1, _DRAWN_AT_ONCE // sample.size)
    means: list[np.ndarray] = []
    for start in range(0, n, rows):
        places = random.integers(0, sample.size, size=(min(rows, n - start), sample.size))
        means.append(sample[places].mean(axis=1))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(sample.mean()), float(low), float(high)
