"""Adam with both moments in bfloat16, half of what float32 takes, rounded stochastically.

bfloat16 has 8 significant bits. A second moment that moves by a thousandth of itself (b2 = 0.999), rounded to the
nearest, would stay where it is for ever; rounded up or down at random, with chances that make the mean exact, it
follows its float32 self in the mean (Gupta et al., 2015, arXiv:1502.02551). The random bits are a hash of the step, the
parameter's path and the element's place: the same on any number of devices, and nothing to store.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float32, Int, PyTree, UInt32


def scale_by_adam_bfloat16(b1: float, b2: float, eps: float = 1e-8) -> optax.GradientTransformation:
    """As `optax.scale_by_adam` over a flat parameter dict, with moments that are kept in bfloat16.

    The arithmetic is float32. The update is made from the moments as they are kept: then nothing reads the old ones
    any more once the new ones are written, and the compiler writes them in the old ones' place without a copy.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        first, second = ({path: jnp.zeros(leaf.shape, jnp.bfloat16) for path, leaf in params.items()} for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), first, second)

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        updates, first, second = {}, {}, {}
        for path, gradient in gradients.items():
            gradient = gradient.astype(jnp.float32)
            mean = b1 * state.mu[path].astype(jnp.float32) + (1 - b1) * gradient
            square = b2 * state.nu[path].astype(jnp.float32) + (1 - b2) * jnp.square(gradient)
            bits = random_bits(gradient.shape, path, count)
            kept = round_stochastically(mean, bits), round_stochastically(square, bits >> 16)
            # Else the compiler would put the rounding into the update, and read the old moments again.
            first[path], second[path] = jax.lax.optimization_barrier(kept)
            mean, square = (moment[path].astype(jnp.float32) for moment in (first, second))
            corrected = square / (1 - b2 ** count.astype(jnp.float32))
            updates[path] = mean / (1 - b1 ** count.astype(jnp.float32)) / (jnp.sqrt(corrected) + eps)
        return updates, optax.ScaleByAdamState(count, first, second)

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Float32[Array, "..."], bits: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
    """One of the two bfloat16 numbers next to each x, the nearer with the greater chance; x itself if it is one.

    Args:
        x: Infinities and NaN stay what they are.
        bits: Uniform in their lower 16 bits.
    """
    # bfloat16 is the upper half of float32: a carry out of the lower half is the step up in magnitude.
    raw = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & 0xFFFF)
    rounded = jax.lax.bitcast_convert_type((raw >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def random_bits(shape: tuple[int, ...], path: str, step: Int[Array, ""]) -> UInt32[Array, "..."]:
    """32 bits for each element, from its place, the parameter's path and the step alone."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _hash(place ^ _hash(step.astype(jnp.uint32) + jnp.uint32(zlib.crc32(path.encode()))))


def _hash(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32 bits that changes half of them for any change (Wellons' "lowbias32", nullprogram.com)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
