"""Attention by JAX's flash kernel for TPUs, which never has the table of all scores.

The kernel (`jax.experimental.pallas.ops.tpu.flash_attention`; Dao et al., 2022, arXiv:2205.14135) wants heads of 128
channels or multiples, and multiples of 128 queries and keys: zeros fill them up, and no query attends to a key that was
filled in. It knows neither `vmap` nor partitioning; both go over the batch here, and partitioning over the heads, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas.ops.tpu import flash_attention as upstream
from jaxtyping import Array, Float

LANES = 128
"""Width of a TPU's vector registers, by which the kernel cuts everything."""
BLOCK = 512
"""Queries and keys of one block, at most: scores of a megabyte, in the 16 and more that a core keeps at hand."""


def flash_attention(
    query: Float[Array, "b q heads d"], key: Float[Array, "b k heads d"], value: Float[Array, "b k heads d"]
) -> Float[Array, "b q heads d"]:
    """Scaled dot-product attention on a TPU; not differentiable, see `flash_gradient`."""
    output: Array = _attention(query, key, value)
    return output


def flash_gradient(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    gradient: Float[Array, "b q heads d"],
) -> tuple[Float[Array, "b q heads d"], Float[Array, "b k heads d"], Float[Array, "b k heads d"]]:
    """Gradients of queries, keys and values from the output's; the output is computed again, and nothing is kept."""
    gradients: tuple[Array, Array, Array] = _gradient(query, key, value, gradient)
    return gradients


def _kernel(query: Array, key: Array, value: Array) -> Array:
    (batch, queries, _, width), keys = query.shape, key.shape[1]
    q, k, v = (_filled(x) for x in (query, key, value))
    filled = k.shape[2]
    segments = None
    if filled != keys:
        # Keys that were filled in are of another segment than all queries.
        segment_of_keys = jnp.broadcast_to(jnp.arange(filled) >= keys, (batch, filled)).astype(jnp.int32)
        segments = upstream.SegmentIds(jnp.zeros((batch, q.shape[2]), jnp.int32), segment_of_keys)
    block_q, block_k = _block(q.shape[2]), _block(filled)
    sizes = upstream.BlockSizes(
        block_q=block_q,
        block_k_major=block_k,
        block_k=block_k,
        block_b=1,
        block_q_major_dkv=block_q,
        block_k_major_dkv=block_k,
        block_k_dkv=block_k,
        block_q_dkv=block_q,
        block_k_major_dq=block_k,
        block_k_dq=block_k,
        block_q_dq=block_q,
    )
    output = upstream.flash_attention(q, k, v, segment_ids=segments, sm_scale=width**-0.5, block_sizes=sizes)
    return output[:, :, :queries, :width].swapaxes(1, 2)


def _kernel_gradient(query: Array, key: Array, value: Array, gradient: Array) -> tuple[Array, Array, Array]:
    return jax.vjp(_kernel, query, key, value)[1](gradient)


def _filled(x: Float[Array, "b length heads d"]) -> Float[Array, "b heads length2 d2"]:
    """The kernel's order and sizes."""
    _, length, _, width = x.shape
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -length % LANES), (0, -width % LANES)))


def _block(length: int) -> int:
    """The largest divisor of a number of queries or keys, both multiples of LANES, that is no larger than BLOCK."""
    return next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)


def _over_the_batch(function: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """A function of arrays [b, length, heads, d] for `vmap`, whose axis joins the batch, and for several devices.

    Args:
        function: For whom samples and heads have nothing to do with each other.
        rule: Which axes are the same, for Shardy.
    """

    def partition(mesh: Any, arguments: Any, results: Any) -> tuple[Any, ...]:
        of_results, of_arguments = (jax.tree.map(lambda x: x.sharding, x) for x in (results, arguments))
        return mesh, function, of_results, of_arguments

    shared = custom_partitioning(function)
    # In the order in which the rules have them: Shardy wants it.
    shared.def_partition(partition, sharding_rule=rule, need_replication_factors=("q", "d", "k"))
    mapped = custom_vmap(shared)

    @mapped.def_vmap
    def fold(axis_size: int, is_mapped: list[bool], *arrays: Array) -> tuple[Any, Any]:
        whole = [
            x if with_axis else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, with_axis in zip(arrays, is_mapped, strict=True)
        ]
        results = mapped(*(x.reshape(-1, *x.shape[2:]) for x in whole))
        unfolded = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), results)
        return unfolded, jax.tree.map(lambda _: True, unfolded)

    return mapped


_attention = _over_the_batch(_kernel, "b q h d, b k h d, b k h d -> b q h d")
_gradient = _over_the_batch(_kernel_gradient, "b q h d, b k h d, b k h d, b q h d -> b q h d, b k h d, b k h d")
