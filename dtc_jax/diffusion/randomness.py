"""Random numbers that belong to a sample, not to its place in a batch.

Every sample draws from a key of its own, so that its noise stays the same however the batch is composed,
ordered or spread over devices and processes.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, UInt32

# One key or several: typed (`jax.random.key`), or raw with a trailing axis of words (`jax.random.PRNGKey`).
KeyLike: TypeAlias = Key[Array, "..."] | UInt32[Array, "*keys words"]


def as_typed_key(key: KeyLike) -> Key[Array, "..."]:
    """The same keys, typed."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def per_sample_keys(key: KeyLike, index: int | Integer[Array | np.ndarray, " b"]) -> Key[Array, " b"]:
    """One key for each sample: `fold_in(key, index[i])`.

    Args:
        key: one key, typed or raw; in training `fold_in(run_key, step)`.
        index: what identifies each sample (its place in the endless global order), or an integer `b` for 0..b-1.
    """
    index = jnp.arange(index, dtype=jnp.uint32) if isinstance(index, int) else jnp.asarray(index)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(as_typed_key(key), index)


def per_sample_normal(
    keys: KeyLike, sample_shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> Float[Array, "b ..."]:
    """Standard normal noise of shape `[b, *sample_shape]`, row i drawn from `keys[i]` alone."""
    return jax.vmap(lambda key: jax.random.normal(key, sample_shape, dtype))(as_typed_key(keys))
