"""What is computed again is not kept, and is neither merged nor computed too early by the compiler."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.models.remat import Remat, apply_block, recomputed

WIDTH, ROWS, BLOCKS = 32, 256, 16


class Block(nn.Module):
    """Sixteen times as wide inside as outside."""

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array) -> jax.Array:
        hidden = nn.Dense(16 * WIDTH)(x) + shift
        return x + nn.Dense(WIDTH)(jnp.sin(jnp.tanh(hidden)))


class Network(nn.Module):
    remat: Remat

    def setup(self) -> None:
        self.blocks = [Block() for _ in range(BLOCKS)]

    def __call__(self, x: jax.Array, shift: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = apply_block(block, self.remat, x, shift)
        return x


def gradient(remat: Remat) -> Any:
    network = Network(remat)
    return jax.jit(
        jax.grad(lambda params, *inputs: network.apply({"params": params}, *inputs).sum(), argnums=(0, 1, 2))
    )


def inputs() -> tuple[Any, jax.Array, jax.Array]:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, ROWS, WIDTH)), jnp.float32)
    shift = jnp.float32(0.3)
    return Network("none").init(jax.random.key(0), x, shift)["params"], x, shift


@pytest.mark.parametrize("remat", ["block", "products"])
def test_same_parameters_and_gradients(remat: Remat) -> None:
    params, x, shift = inputs()
    initialised = Network(remat).init(jax.random.key(0), x, shift)["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, initialised, params))
    expected, found = (gradient(kind)(params, x, shift) for kind in ("none", remat))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_compiled_program_holds_one_block_at_a_time() -> None:
    """The hidden activations of one block are 1 MiB; kept, they would be 16."""
    sizes = {
        remat: gradient(remat).lower(*inputs()).compile().memory_analysis().temp_size_in_bytes / 2**20
        for remat in ("none", "block")
    }
    assert sizes["none"] > 16
    assert sizes["block"] < 6


def test_function_of_several_results() -> None:
    def function(scale: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sin(scale * x), (x**2).sum(1)

    def total(function: Any) -> Any:
        return jax.grad(lambda scale, x: sum((part**2).sum() for part in function(scale, x)), argnums=(0, 1))

    x = jnp.arange(6.0).reshape(2, 3)
    for one, other in zip(total(function)(2.0, x), total(recomputed(function))(2.0, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
