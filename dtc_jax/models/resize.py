"""Bilinear resizing as PyTorch and OpenCV do it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(images: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b h2 w2 c"]:
    """Resize to height x width, float32; pixels have their centres at half numbers, and there is no antialiasing.

    The same as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` and `cv2.resize(INTER_LINEAR)`:
    each pixel is a mean of its (at most) two neighbours along each side, at the border the border pixel alone.
    """
    rows, columns = _weights(images.shape[1], height), _weights(images.shape[2], width)
    return jnp.einsum(
        "bhwc,hH,wW->bHWc", images.astype(jnp.float32), rows, columns, precision=jax.lax.Precision.HIGHEST
    )


def _weights(size: int, new_size: int) -> Float[np.ndarray, "size new_size"]:
    """Weight of every old place in every new one; positions in float64, because sizes are known when tracing."""
    places = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
    distance = np.abs(np.arange(size)[:, None] - places[None, :])
    return np.maximum(1 - distance, 0).astype(np.float32)
