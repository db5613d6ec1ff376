"""Scaled dot-product attention: plain for short sequences, without the table of all scores for long ones.

Plain attention over the 4096 places of 64x64 latents makes a table of 16 million scores per head and sample, and keeps
it for the gradient. Long sequences therefore have a gradient of their own, which keeps the inputs and the output alone
(as in FlashAttention, Dao et al., 2022, arXiv:2205.14135). On CPUs they also go block by block, where the scores stay
in the cache; accelerators take the plain product, which is one large operation for them, or, if they are told to, a
fused kernel or large blocks.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dtc_jax.models.flash_attention import flash_attention, flash_gradient

CHOICE = os.environ.get("DTC_JAX_ATTENTION", "")
CHOICES = ("cudnn", "flash", "blocks")
if CHOICE and CHOICE not in CHOICES:
    warnings.warn(f"DTC_JAX_ATTENTION={CHOICE} is none of {', '.join(CHOICES)}: ignored", stacklevel=2)
CUDNN = CHOICE == "cudnn"
"""Whether NVIDIA GPUs take cuDNN's fused kernel in half precision. Off unless the environment says so, because it has
only been lowered and not run yet."""
FLASH = CHOICE == "flash"
"""Whether TPUs take the flash kernel for long sequences. Off unless the environment says so: it has been lowered, and
simulated on a CPU, but not run on a TPU yet."""
BLOCKS = CHOICE == "blocks"
"""Whether accelerators take `GRADIENT_BLOCK` queries of a long sequence at a time: less memory. Off unless the
environment says so: it has been compiled for TPUs, and not been measured on an accelerator yet."""
CUDNN_WIDTH = 128
"""Channels of a head, at most, on every GPU that has the kernel."""
LONG_SCORES = 2**22
"""Scores per head and sample (queries x keys) from which a sequence is long."""
BLOCKWISE_SCORES = 2**20
"""The same with `FLASH`, and in float32, which is what CPUs compute in (elsewhere the gradient of these lengths then
computes the scores again, too): at full size also 1024 places, and 4096 with the reference's 257 tokens. Below, filling
up to the kernel's blocks is much of the work, and the table is small."""
BLOCK_SCORES = 2**18
"""Scores of one block and sample, at most: a megabyte, which stays in a core's cache."""
GRADIENT_BLOCK = 512
"""Queries of one block of the gradient, at most."""


def attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q heads d"]:
    """Scaled dot-product attention, softmax in float32 (Vaswani et al., 2017, equation 1).

    Queries see only keys where `mask` is true; every query must see one.
    """
    longest = BLOCKWISE_SCORES if FLASH or query.dtype == jnp.float32 else LONG_SCORES
    ours = long_attention if query.shape[1] * key.shape[1] >= longest else plain_attention
    if mask is not None:
        return plain_attention(query, key, value, mask)
    if CUDNN and query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] <= CUDNN_WIDTH:
        return jax.lax.platform_dependent(query, key, value, cuda=cudnn_attention, default=ours)
    return ours(query, key, value)


def cudnn_attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b q heads d"]:
    """`attention` by cuDNN's fused kernel, for half precision; zeros fill the heads up to a multiple of 8 channels."""
    width = query.shape[-1]
    padding = [(0, 0), (0, 0), (0, 0), (0, -width % 8)]
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    output = jax.nn.dot_product_attention(query, key, value, scale=width**-0.5, implementation=implementation)
    return output[..., :width]


def plain_attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q heads d"]:
    """`attention` with all scores in one table."""
    scale = query.shape[-1] ** -0.5
    query, key, value = (x.swapaxes(1, 2) for x in (query * jnp.asarray(scale, query.dtype), key, value))
    scores = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # Divided by the sum after the product with the values, where there is less to divide.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    output = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32) / total
    return output.astype(value.dtype).swapaxes(1, 2)


def plain_gradient(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    gradient: Float[Array, "b q heads d"],
) -> tuple[Float[Array, "b q heads d"], Float[Array, "b k heads d"], Float[Array, "b k heads d"]]:
    """Gradients of queries, keys and values of `plain_attention`, which is computed again."""
    gradients: tuple[Array, Array, Array] = jax.vjp(plain_attention, query, key, value)[1](gradient)
    return gradients


@jax.custom_vjp
def long_attention(
    query: Float[Array, "b q heads d"], key: Float[Array, "b k heads d"], value: Float[Array, "b k heads d"]
) -> Float[Array, "b q heads d"]:
    """`attention` whose gradient computes the scores again instead of keeping them."""
    return _forward(query, key, value)[0]


Residuals = tuple[Array, Array, Array, Array, Array]


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, Residuals]:
    def alone(kernel: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
        # The logarithms are the CPU's blocks' business; all branches must return the same shapes.
        return lambda *inputs: (kernel(*inputs), jnp.zeros((*query.shape[:-1], 1), jnp.float32))

    # By the platform that is compiled for, which need not be the one that this process runs on.
    kernels = {"cpu": blockwise_attention, **({"tpu": alone(flash_attention)} if FLASH else {})}
    default = alone(query_blocks if BLOCKS else plain_attention)
    output, logarithms = jax.lax.platform_dependent(query, key, value, **kernels, default=default)
    return output, (query, key, value, output, logarithms)


def _backward(residuals: Residuals, gradient: Array) -> tuple[Array, Array, Array]:
    def again(kernel: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
        # From the inputs alone, without what the forward pass has kept.
        return lambda query, key, value, output, logarithms, gradient: kernel(query, key, value, gradient)

    kernels = {"cpu": blockwise_gradient, **({"tpu": again(flash_gradient)} if FLASH else {})}
    default = again(query_blocks_gradient if BLOCKS else plain_gradient)
    queries, keys, values = jax.lax.platform_dependent(*residuals, gradient, **kernels, default=default)
    return queries, keys, values


long_attention.defvjp(_forward, _backward)


def query_blocks(
    query: Float[Array, "b q heads d"], key: Float[Array, "b k heads d"], value: Float[Array, "b k heads d"]
) -> Float[Array, "b q heads d"]:
    """`plain_attention`, at most `GRADIENT_BLOCK` queries of all heads at a time: blocks that fill an accelerator."""
    size = _block_size(query.shape[1], GRADIENT_BLOCK)
    output = jax.lax.map(lambda block: plain_attention(block, key, value), _query_blocks(query, size))
    return _join_queries(output, query.shape[1])


def query_blocks_gradient(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    gradient: Float[Array, "b q heads d"],
) -> tuple[Float[Array, "b q heads d"], Float[Array, "b k heads d"], Float[Array, "b k heads d"]]:
    """Gradients of queries, keys and values of `query_blocks`, summed over its blocks in float32."""

    def block(sums: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        queries, gradients = inputs
        of_queries, of_keys, of_values = plain_gradient(queries, key, value, gradients)
        return (sums[0] + of_keys, sums[1] + of_values), of_queries

    size = _block_size(query.shape[1], GRADIENT_BLOCK)
    zeros = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    blocks = _query_blocks(query, size), _query_blocks(gradient, size)
    (of_keys, of_values), of_queries = jax.lax.scan(block, zeros, blocks)
    return _join_queries(of_queries, query.shape[1]), of_keys.astype(key.dtype), of_values.astype(value.dtype)


def blockwise_attention(
    query: Float[Array, "b q heads d"], key: Float[Array, "b k heads d"], value: Float[Array, "b k heads d"]
) -> tuple[Float[Array, "b q heads d"], Float[Array, "b q heads 1"]]:
    """Attention, one head and one block of queries at a time; the batch stays whole, so that devices can share it.

    Scores have their queries in the last axis: maxima and sums then go through memory in its order, and no product is
    as narrow as a head.

    Returns:
        The output, and the logarithm to the base 2 of each query's sum of weights, for `blockwise_gradient`.
    """
    size = _block_size(query.shape[1], max(BLOCK_SCORES // key.shape[1], 1))

    def head(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        blocks, keys, values = inputs
        values = values.swapaxes(-1, -2)

        def block(queries: Array) -> tuple[Array, Array]:
            scores = _scores(keys, queries)
            largest = scores.max(axis=-2, keepdims=True)
            weights = jnp.exp2(scores - largest)
            total = weights.sum(axis=-2, keepdims=True)
            return jnp.matmul(values, weights) / total, largest + jnp.log2(total)

        return jax.lax.map(block, blocks)

    # XLA's products of half precision on CPUs do not take every order of axes.
    queries, keys, values = (x.astype(jnp.float32) for x in (_scaled(query), key, value))
    output, logarithms = jax.lax.map(head, (_blocks(queries, size), _heads(keys), _heads(values)))
    length = query.shape[1]
    output, logarithms = (_unblock(x.swapaxes(-1, -2), length) for x in (output, logarithms))
    return output.astype(value.dtype), logarithms


def blockwise_gradient(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    output: Float[Array, "b q heads d"],
    logarithms: Float[Array, "b q heads 1"],
    gradient: Float[Array, "b q heads d"],
) -> tuple[Float[Array, "b q heads d"], Float[Array, "b k heads d"], Float[Array, "b k heads d"]]:
    """Gradients of queries, keys and values from what `blockwise_attention` returned and its output's gradient."""
    scale = query.shape[-1] ** -0.5
    # What the softmax's gradient takes off every score of a query.
    shared = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(axis=-1, keepdims=True)

    def head(inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        *blocks, keys, values = inputs

        def block(sums: tuple[Array, Array], inputs: list[Array]) -> tuple[tuple[Array, Array], Array]:
            queries, logs, gradients, shares = inputs
            weights = jnp.exp2(_scores(queries, keys) - logs)
            of_weights = jnp.matmul(gradients, values.swapaxes(-1, -2), preferred_element_type=jnp.float32)
            of_scores = (weights * (of_weights - shares)).astype(queries.dtype)
            of_queries = jnp.matmul(of_scores, keys, preferred_element_type=jnp.float32) * scale
            rows = of_scores.swapaxes(-1, -2)
            # The queries carry the scale, and the base's logarithm, which is taken off again.
            keys_sum = sums[0] + jnp.matmul(rows, queries, preferred_element_type=jnp.float32) * math.log(2)
            mixed = weights.astype(gradients.dtype).swapaxes(-1, -2)
            values_sum = sums[1] + jnp.matmul(mixed, gradients, preferred_element_type=jnp.float32)
            return (keys_sum, values_sum), of_queries.astype(queries.dtype)

        zeros = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
        (of_keys, of_values), of_queries = jax.lax.scan(block, zeros, blocks)
        return of_queries, of_keys.astype(keys.dtype), of_values.astype(values.dtype)

    size = _block_size(query.shape[1], GRADIENT_BLOCK)
    by_query = [_blocks(x, size) for x in (_scaled(query), logarithms, gradient, shared)]
    of_queries, of_keys, of_values = jax.lax.map(head, (*by_query, _heads(key), _heads(value)))
    return _unblock(of_queries, query.shape[1]), of_keys.transpose(1, 2, 0, 3), of_values.transpose(1, 2, 0, 3)


def _scaled(query: Array) -> Array:
    """Queries whose scores are logarithms to the base 2: CPUs raise 2 to a power faster than e."""
    return query * jnp.asarray(query.shape[-1] ** -0.5 / math.log(2), query.dtype)


def _scores(queries: Float[Array, "b q d"], keys: Float[Array, "b k d"]) -> Float[Array, "b q k"]:
    return jnp.matmul(queries, keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)


def _block_size(length: int, most: int) -> int:
    """Queries of a block: as few blocks as can be, all of one size."""
    blocks = -(-length // most)
    return -(-length // blocks)


def _query_blocks(x: Float[Array, "b q heads d"], size: int) -> Float[Array, "blocks b block heads d"]:
    """Zeros fill the last block up: they are cut off again, and have no part in a gradient."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    batch, length, heads, width = x.shape
    return x.reshape(batch, length // size, size, heads, width).swapaxes(0, 1)


def _join_queries(x: Float[Array, "blocks b block heads d"], length: int) -> Float[Array, "b q heads d"]:
    blocks, batch, size, heads, width = x.shape
    return x.swapaxes(0, 1).reshape(batch, blocks * size, heads, width)[:, :length]


def _blocks(x: Float[Array, "b q heads d"], size: int) -> Float[Array, "heads blocks b block d"]:
    return _query_blocks(x, size).transpose(3, 0, 1, 2, 4)


def _unblock(x: Float[Array, "heads blocks b block d"], length: int) -> Float[Array, "b q heads d"]:
    return _join_queries(x.transpose(1, 2, 3, 0, 4), length)


def _heads(x: Float[Array, "b k heads d"]) -> Float[Array, "heads b k d"]:
    return x.transpose(2, 0, 1, 3)
