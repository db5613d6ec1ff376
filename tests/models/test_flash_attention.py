"""The TPU's kernel, simulated on a CPU, against plain attention; lowered for TPUs at the full model's sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dtc_jax.models import attention as module
from dtc_jax.models import flash_attention as kernel
from dtc_jax.models.attention import attention, plain_attention
from dtc_jax.models.flash_attention import flash_attention, flash_gradient

# 64x64, 32x32, 16x16 and 8x8 places, with themselves and with the reference's tokens.
FULL_SIZE = [(4096, 40), (1024, 80), (256, 160), (64, 160)]


def inputs(batch: int, queries: int, keys: int, heads: int, width: int) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    lengths = (queries, keys, keys, queries)
    return tuple(jnp.asarray(random.normal(size=(batch, n, heads, width)), jnp.float32) for n in lengths)


def assert_close(found: Any, expected: Any) -> None:
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.shape == plain.shape
        assert np.linalg.norm(ours - plain) < 1e-5 * np.linalg.norm(plain)


@pytest.mark.parametrize(
    ("queries", "keys", "width", "block"),
    [(40, 37, 8, 512), pytest.param(130, 257, 136, 128, marks=pytest.mark.slow)],
)
def test_kernel_is_plain_attention(
    queries: int, keys: int, width: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled up by much and by little, in one block and in several."""
    monkeypatch.setattr(kernel, "BLOCK", block)
    query, key, value, gradient = inputs(1, queries, keys, 1, width)
    with pltpu.force_tpu_interpret_mode():
        # One after the other: two such kernels at once would share a simulated memory.
        found = jax.block_until_ready(flash_attention(query, key, value))
        gradients = jax.block_until_ready(flash_gradient(query, key, value, gradient))
    output, pullback = jax.vjp(plain_attention, query, key, value)
    assert_close((found, gradients), (output, pullback(gradient)))


def test_it_is_taken_on_tpus_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def lowered(queries: int, keys: int, width: int, dtype: Any, platform: str = "tpu") -> str:
        lengths = (queries, keys, keys)
        shapes = [jax.ShapeDtypeStruct((2, length, 8, width), dtype) for length in lengths]
        # The gradient's function holds both directions.
        both = jax.jit(jax.value_and_grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
        return both.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()

    assert "tpu_custom_call" not in lowered(4096, 4096, 40, jnp.bfloat16)
    monkeypatch.setattr(module, "FLASH", True)
    for queries, keys, width in [(4096, 4096, 40), (4096, 257, 40), (1024, 1024, 80)]:
        for dtype in (jnp.float32, jnp.bfloat16):
            text = lowered(queries, keys, width, dtype)
            # Forward; forward again, and the two kernels of the gradient.
            assert text.count("@tpu_custom_call") == 4, (queries, keys, dtype)
            assert f"{queries}x{keys}" not in text, "a table of all scores"
    assert "tpu_custom_call" not in lowered(1024, 257, 80, jnp.float32)
    for platform in ("cpu", "cuda"):
        assert "tpu_custom_call" not in lowered(1024, 1024, 80, jnp.float32, platform)


@pytest.mark.parametrize(("queries", "width"), FULL_SIZE)
@pytest.mark.parametrize("tokens", [False, True])
def test_full_sizes_are_lowered(queries: int, width: int, tokens: bool) -> None:
    shape, keys = (2, queries, 8, width), 257 if tokens else queries
    query = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, keys, 8, width), jnp.bfloat16)
    both = jax.jit(lambda q, k, g: (flash_attention(q, k, k), flash_gradient(q, k, k, g)))
    text = both.trace(query, key, query).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 4


def test_mapped() -> None:
    arrays = [x.reshape(3, 2, *x.shape[1:]) for x in inputs(6, 9, 7, 2, 8)]
    rule = kernel._over_the_batch(plain_attention, "b q h d, b k h d, b k h d -> b q h d")
    query, key, value, _ = arrays
    found = jax.vmap(rule, in_axes=(0, None, 0))(query, key[0], value)
    assert_close(found, jax.vmap(plain_attention, in_axes=(0, None, 0))(query, key[0], value))


def test_samples_and_heads_on_several_devices() -> None:
    """Each device has its own samples and heads, and asks no other for any."""
    mesh = jax.make_mesh((4, 2), ("samples", "heads"), axis_types=(AxisType.Auto,) * 2)
    shares = NamedSharding(mesh, P("samples", None, "heads"))
    query, key, value, _ = inputs(4, 9, 7, 2, 8)
    rule = jax.jit(kernel._over_the_batch(plain_attention, "b q h d, b k h d, b k h d -> b q h d"))
    placed = jax.device_put((query, key, value), shares)
    found = rule(*placed)
    assert found.sharding.is_equivalent_to(shares, 4)
    text = rule.lower(*placed).compile().as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective") if name in text]
    assert_close(found, plain_attention(query, key, value))
    # XLA refuses to part the kernel itself, before it is compiled.
    lowered = jax.jit(lambda *x: flash_attention(*x)).trace(*placed).lower(lowering_platforms=("tpu",)).as_text()
    assert "CustomSPMDPartitioning" in lowered
