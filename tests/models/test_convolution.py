"""The methods of 3x3 convolutions against the definition, and which one is taken where."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.models import convolution as module
from dtc_jax.models.convolution import direct_convolution, patches_convolution, same_convolution, winograd_convolution
from dtc_jax.models.layers import Conv2d
from dtc_jax.models.remat import apply_block


def inputs(shape: tuple[int, ...] = (2, 6, 10, 5), features: int = 7) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    sizes = [shape, (3, 3, shape[-1], features), (*shape[:-1], features)]
    x, kernel, cotangent = (jnp.asarray(random.normal(size=size), jnp.float32) for size in sizes)
    return x, kernel, cotangent


def reference(x: Any, kernel: Any) -> np.ndarray:
    """The definition in float64: each place is a sum over its neighbours, zero beyond the border."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    _, height, width, _ = x.shape
    bordered = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(bordered[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def relative_error(found: Any, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("method", [direct_convolution, patches_convolution, winograd_convolution])
@pytest.mark.parametrize("shape", [(2, 6, 10, 5), (1, 2, 2, 3), (3, 4, 2, 1)])
def test_is_its_definition(method: Any, shape: tuple[int, ...]) -> None:
    x, kernel, _ = inputs(shape)
    # Winograd's adds up to 16 numbers before it multiplies: a few units of float32's last place.
    assert relative_error(jax.jit(method)(x, kernel), reference(x, kernel)) < 1e-6


@pytest.mark.parametrize("few_places", [0, 10**6])
def test_gradient(few_places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_WEIGHTS", 5 * 7)
    monkeypatch.setattr(module, "FEW_PLACES", few_places)
    x, kernel, cotangent = inputs()
    output, pullback = jax.vjp(same_convolution, x, kernel)
    assert relative_error(output, reference(x, kernel)) < 1e-6
    wanted = jax.vjp(direct_convolution, x, kernel)[1](cotangent)
    for found, expected in zip(pullback(cotangent), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


def lowered(
    shape: tuple[int, ...], features: int, dtype: Any = jnp.float32, platform: str = "cpu", **layer: Any
) -> str:
    x = jax.ShapeDtypeStruct(shape, dtype)
    conv = Conv2d(features, dtype=dtype, **layer)
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    return jax.jit(conv.apply).trace(params, x).lower(lowering_platforms=(platform,)).as_text()


def test_what_is_taken_where() -> None:
    winograd, patches = lowered((2, 16, 16, 320), 640), lowered((2, 8, 8, 640), 320)
    assert "dot_general" in winograd and "while" in winograd and "128x320" in winograd
    assert "dot_general" in patches and "while" not in patches and "128x5760" in patches
    assert "stablehlo.convolution" not in winograd + patches + lowered((2, 16, 16, 320), 320)
    for text in (
        lowered((2, 16, 16, 320), 640, platform="tpu"),
        lowered((2, 8, 8, 640), 320, platform="cuda"),
        lowered((2, 16, 16, 320), 640, jnp.bfloat16),
        lowered((2, 16, 16, 80), 640),
        lowered((2, 16, 16, 640), 4),
        lowered((2, 15, 16, 320), 640),
        lowered((2, 16, 15, 320), 640),
        lowered((1, 512, 16, 320), 640),
        lowered((1, 16, 512, 320), 640),
        lowered((2, 16, 16, 320), 640, stride=2),
        lowered((2, 16, 16, 320), 640, padding=0),
    ):
        assert "stablehlo.convolution" in text and "dot_general" not in text


def test_loops_keep_one_factor_at_a_time() -> None:
    """Sixteen transformed kernels of 256 x 256 channels are 4 MiB, of ten convolutions 40."""

    def convolutions(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
        for kernel in kernels:
            x = jnp.tanh(winograd_convolution(x, kernel))
        return x

    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 8, 256), (3, 3, 256, 256)))
    memory = jax.jit(convolutions).lower(x, [kernel] * 10).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4 * 2**20


class Block(nn.Module):
    """What follows the convolution needs its result in the backward pass."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sin(Conv2d(4)(x))


@pytest.mark.parametrize("remat, convolutions", [("none", 3), ("products", 3), ("block", 4)])
def test_remat_of_products_keeps_it(remat: Any, convolutions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the result and one for each gradient; a fourth where it is computed again."""
    monkeypatch.setattr(module, "MANY_WEIGHTS", 1)
    block, x = Block(), jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    params = jax.eval_shape(block.init, jax.random.key(0), x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.square(apply_block(block.bind(params), remat, x)).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(params, x).lower(lowering_platforms=("cuda",))
    assert gradient.as_text().count("stablehlo.convolution") == convolutions


def test_sizes_that_are_not_known_and_none_at_all() -> None:
    conv, kernel = Conv2d(320), jax.ShapeDtypeStruct((3, 3, 320, 320), jnp.float32)
    params = {"params": {"kernel": kernel, "bias": jax.ShapeDtypeStruct((320,), jnp.float32)}}
    for sizes in ("b, 16, 16", "2, h, 16", "2, 16, w"):
        x = jax.ShapeDtypeStruct((*jax.export.symbolic_shape(sizes), 320), jnp.float32)
        jax.export.export(jax.jit(conv.apply))(params, x)
    for method in (patches_convolution, winograd_convolution):
        assert method(jnp.zeros((0, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))).shape == (0, 4, 4, 2)
