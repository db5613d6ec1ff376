"""3x3 convolutions that keep the size, by the method that is the fastest where they run.

Accelerators have convolutions of their own. XLA's on CPUs take up to twice as long as they need to where there are many
channels, which is most of a latent-diffusion U-Net: in float32 these are rewritten there, on few places as one product
of matrices, on more by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, 2015, arXiv:1509.09308), which
multiplies 16 times for 4 results where the definition multiplies 36 times.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

MANY_WEIGHTS = 320 * 320
"""Channels in times channels out from which the methods for CPUs are worth it."""
LARGEST_SIDE = 256
"""Height and width up to which they are: Winograd's works with two to three times its input's memory."""
FEW_PLACES = 512
"""Places of the whole batch below which reading the kernel takes the longest: Winograd's is 16 / 9 as large."""
CHECKPOINT_NAME = "convolution"
"""Name of results for the policies of `jax.checkpoint`, to which a function with a gradient of its own is opaque."""

TILE_TRANSFORM = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
"""B^T of Lavin and Gray, section 4.1."""
KERNEL_TRANSFORM = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
"""G."""
RESULT_TRANSFORM = ((1, 0), (1, 1), (1, -1), (0, -1))
"""A."""


def same_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Convolution with a 3x3 kernel, stride 1 and a border of zeros, as `torch.nn.functional.conv2d(padding=1)`.

    Relative error to the exact result below 1e-6 in float32, whichever method is taken. With many channels in float32
    it has a gradient of its own, and so no forward mode. What is not finite reaches the neighbours of its 3x3 places
    too, in Winograd's.
    """
    wide = x.shape[-1] * kernel.shape[-1] >= MANY_WEIGHTS
    # A symbolic size, of an export for several, is no int.
    sides: tuple[Any, ...] = x.shape[1:3]
    fits = all(isinstance(side, int) and side % 2 == 0 and side <= LARGEST_SIDE for side in sides)
    if x.dtype == jnp.float32 and wide and fits:
        return checkpoint_name(_wide_convolution(x, kernel), CHECKPOINT_NAME)
    return direct_convolution(x, kernel)


def direct_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """XLA's convolution."""
    borders = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), borders, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _wide_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    sizes: tuple[Any, ...] = x.shape
    batch, height, width, _ = sizes
    few = isinstance(batch, int) and batch * height * width < FEW_PLACES
    on_cpu = patches_convolution if few else winograd_convolution
    # By the platform that is compiled for, which need not be the one that this process runs on.
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=direct_convolution)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _wide_convolution(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The definition's gradient: it keeps the input and the kernel alone, not what the methods make of them."""
    x, kernel = residuals
    (of_x,) = jax.linear_transpose(lambda x: direct_convolution(x, kernel), x)(gradient)
    (of_kernel,) = jax.linear_transpose(lambda kernel: direct_convolution(x, kernel), kernel)(gradient)
    return of_x, of_kernel


_wide_convolution.defvjp(_forward, _backward)


def patches_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """The product of every place's 3x3 neighbours with the kernel as one matrix."""
    batch, height, width, channels = x.shape
    bordered = _bordered(x)
    patches = [bordered[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    rows = jnp.concatenate(patches, axis=-1).reshape(batch * height * width, 9 * channels)
    features = kernel.shape[-1]
    return (rows @ kernel.reshape(9 * channels, features)).reshape(batch, height, width, features)


def winograd_convolution(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Winograd's F(2x2, 3x3): Y = A^T [(G g G^T) * (B^T d B)] A for each 4x4 tile d, tiles two places apart.

    Over all tiles and channels, each of the sixteen places of a tile is one product of matrices.

    Args:
        x: Height and width are even.
        kernel: As in `same_convolution`.
    """
    batch, height, width, channels = x.shape
    bordered = _bordered(x)
    quarter = (batch, height // 2, width // 2, kernel.shape[-1])
    matrices = tuple(jnp.asarray(matrix, x.dtype) for matrix in (TILE_TRANSFORM, KERNEL_TRANSFORM, RESULT_TRANSFORM))

    # Loops, so that no more than one of the sixteen products' factors is in memory: all of them, of all convolutions
    # whose kernels are known from the start, are what XLA would compute ahead and keep.
    def row(results: tuple[Array, ...], of_row: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        tile_rows = _weighted_sum(of_row[0], [bordered[:, i : i + height - 1 : 2] for i in range(4)])
        kernel_rows = _weighted_sum(of_row[1], list(kernel))

        def column(results: tuple[Array, ...], of_column: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            tiles = _weighted_sum(of_column[0], [tile_rows[:, :, j : j + width - 1 : 2] for j in range(4)])
            factor = _weighted_sum(of_column[1], list(kernel_rows))
            product = (tiles.reshape(-1, channels) @ factor).reshape(quarter)
            shares = [upper_or_lower * left_or_right for upper_or_lower in of_row[2] for left_or_right in of_column[2]]
            return tuple(result + share * product for result, share in zip(results, shares, strict=True)), None

        return jax.lax.scan(column, results, matrices)[0], None

    empty = tuple(jnp.zeros(quarter, x.dtype) for _ in range(4))
    results, _ = jax.lax.scan(row, empty, matrices)
    rows = [jnp.stack(results[:2], axis=3), jnp.stack(results[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(batch, height, width, quarter[-1])


def _bordered(x: Float[Array, "b h w c"]) -> Float[Array, "b h3 w3 c"]:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _weighted_sum(weights: Float[Array, " n"], parts: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, [weight * part for weight, part in zip(weights, parts, strict=True)])
