"""Attention for long sequences against the plain one, forward and backward, and how much it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.models import attention as module
from dtc_jax.models.attention import attention, long_attention, plain_attention


def inputs(queries: int, keys: int, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    random = np.random.default_rng(0)
    shapes = [(2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8), (2, queries, 3, 8)]
    # Large scores: the largest weight of a query is far from the others.
    return tuple(jnp.asarray(2 * random.normal(size=shape), dtype) for shape in shapes)


def reference(query: Any, key: Any, value: Any) -> np.ndarray:
    """Vaswani et al., equation 1, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("queries, keys", [(24, 24), (24, 10), (7, 33), (19, 10)])
@pytest.mark.parametrize("block", [8, 512])
def test_is_its_definition(queries: int, keys: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_SCORES", block * keys)
    monkeypatch.setattr(module, "GRADIENT_BLOCK", block)
    query, key, value, cotangent = inputs(queries, keys)
    np.testing.assert_allclose(long_attention(query, key, value), reference(query, key, value), atol=2e-6)
    np.testing.assert_allclose(plain_attention(query, key, value), reference(query, key, value), atol=2e-6)
    expected = jax.vjp(plain_attention, query, key, value)[1](cotangent)
    for found, wanted in zip(jax.vjp(long_attention, query, key, value)[1](cotangent), expected, strict=True):
        # Scores reach 60 (to the base 2), and an exponent is as exact as its last bit: 4e-6 of each weight.
        np.testing.assert_allclose(found, wanted, atol=5e-5)


def test_half_precision() -> None:
    query, key, value, cotangent = inputs(24, 24, jnp.bfloat16)
    output, pullback = jax.vjp(long_attention, query, key, value)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), reference(query, key, value), atol=0.05)
    exact = jax.vjp(plain_attention, *(x.astype(jnp.float32) for x in (query, key, value)))[1](
        cotangent.astype(jnp.float32)
    )
    for found, wanted in zip(pullback(cotangent), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        assert np.abs(found.astype(jnp.float32) - wanted).max() < 0.03 * np.abs(wanted).max()


def test_length_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_SCORES", 24 * 24)
    monkeypatch.setattr(module, "BLOCKWISE_SCORES", 12 * 24)

    def primitives(queries: int, mask: Any = None, dtype: Any = jnp.bfloat16) -> str:
        query, key, value, _ = inputs(queries, 24, dtype)
        return str(jax.make_jaxpr(lambda *x: attention(*x, mask))(query, key, value))

    assert "custom_vjp_call" in primitives(24)
    assert "custom_vjp_call" not in primitives(23)
    assert "custom_vjp_call" not in primitives(24, jnp.ones((24, 24), bool))
    # CPUs compute in float32, and blocks are the faster there from fewer on.
    assert "custom_vjp_call" in primitives(12, dtype=jnp.float32)
    assert "custom_vjp_call" not in primitives(11, dtype=jnp.float32)


def test_no_table_of_all_scores() -> None:
    """Of 2048 queries and keys the table would have 16 MiB for each of four heads; it is neither kept nor made."""

    def temporaries(function: Callable) -> int:
        x = jax.ShapeDtypeStruct((1, 2048, 4, 8), jnp.float32)
        gradient = jax.jit(jax.grad(lambda *x: function(*x).sum(), argnums=(0, 1, 2)))
        return gradient.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(plain_attention) > 4 * 2**24
    assert temporaries(attention) < 2**25


def test_cudnn_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo

    def lowered(platform: str, width: int, dtype: Any) -> str:
        x = jax.ShapeDtypeStruct((1, 64, 2, width), dtype)
        return jax.jit(lambda *x: attention(*x)).trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()

    assert "fmha" not in lowered("cuda", 40, jnp.bfloat16)
    monkeypatch.setattr(module, "CUDNN", True)
    # There is no cuDNN here, whose version would be looked up.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    assert "fmha" in lowered("cuda", 40, jnp.bfloat16) and "fmha" in lowered("cuda", 36, jnp.float16)
    assert "fmha" not in lowered("cuda", 40, jnp.float32) + lowered("cuda", 160, jnp.bfloat16)
    assert "fmha" not in lowered("tpu", 40, jnp.bfloat16) + lowered("cpu", 40, jnp.bfloat16)


def test_filling_heads_up_changes_nothing() -> None:
    query, key, value, _ = (x[..., :5] for x in inputs(24, 10))
    found = module.cudnn_attention(query, key, value, implementation="xla")
    np.testing.assert_allclose(found, reference(query, key, value), atol=2e-6)


def test_other_platforms_take_the_plain_product() -> None:
    x = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)
    lowered = {
        platform: jax.jit(attention).trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert "while" in lowered["cpu"] and "2048x2048" not in lowered["cpu"]
    for platform in ("tpu", "cuda"):
        assert "while" not in lowered[platform] and "2048x2048" in lowered[platform]


@pytest.mark.parametrize("queries, keys", [(24, 24), (7, 33), (19, 10)])
def test_blocks_of_queries_are_plain_attention(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRADIENT_BLOCK", 8)
    *tensors, cotangent = inputs(queries, keys)
    output, pullback = jax.vjp(plain_attention, *tensors)
    np.testing.assert_allclose(module.query_blocks(*tensors), output, atol=2e-6)
    for found, wanted in zip(module.query_blocks_gradient(*tensors, cotangent), pullback(cotangent), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_blocks_of_queries_in_half_precision() -> None:
    *tensors, cotangent = inputs(24, 24, jnp.bfloat16)
    for found, like in zip(module.query_blocks_gradient(*tensors, cotangent), tensors, strict=True):
        assert found.dtype == like.dtype == jnp.bfloat16


def test_accelerators_take_blocks_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.bfloat16)
    both = jax.value_and_grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))

    def lowered(platform: str) -> str:
        # A function of its own each time: what was traced before is not taken again.
        return jax.jit(lambda *x: both(*x)).trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()

    for platform in ("tpu", "cuda"):
        assert "2048x2048" in lowered(platform)
    monkeypatch.setattr(module, "BLOCKS", True)
    for platform in ("tpu", "cuda"):
        text = lowered(platform)
        assert "2048x2048" not in text and "512x2048" in text and text.count("stablehlo.while") == 2


def test_an_unknown_choice_is_told_of() -> None:
    command = [sys.executable, "-W", "error", "-c", "import dtc_jax.models.attention"]
    done = subprocess.run(command, env={**os.environ, "DTC_JAX_ATTENTION": "flahs"}, capture_output=True, text=True)
    assert done.returncode == 1 and "flahs is none of cudnn, flash, blocks" in done.stderr
