"""Dinov2Model: shapes, precision, order of tokens, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import DINOv2Config
from dtc_jax.models.dinov2 import Dinov2Model

CONFIG = presets.test().reference_encoder
PIXELS = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("use_swiglu_ffn", [False, True])
def test_shapes_and_types(dtype: Any, use_swiglu_ffn: bool) -> None:
    model = Dinov2Model(dataclasses.replace(CONFIG, use_swiglu_ffn=use_swiglu_ffn), dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), PIXELS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    tokens = jax.eval_shape(model.apply, variables, PIXELS)
    assert tokens.shape == (2, 1 + 4, CONFIG.hidden_size) == (2, CONFIG.num_tokens, CONFIG.hidden_size)
    assert tokens.dtype == dtype


def test_giant_has_257_tokens_of_1536_and_a_swiglu_of_4096() -> None:
    config = DINOv2Config()
    model = Dinov2Model(config)
    pixels = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    tokens, variables = jax.eval_shape(lambda key, x: model.init_with_output(key, x), jax.random.key(0), pixels)
    assert tokens.shape == (1, 257, 1536)
    mlp = variables["params"]["encoder"]["layer_39"]["mlp"]
    assert mlp["weights_in"]["kernel"].shape == (1536, 8192)
    assert mlp["weights_out"]["kernel"].shape == (4096, 1536)


def test_tokens_are_cls_then_patches_row_by_row_and_positions_are_added() -> None:
    """Without positions the network does not know where a patch is: swapping two patches swaps their tokens."""
    model = Dinov2Model(CONFIG)
    generator = np.random.default_rng(0)
    pixels = generator.normal(0, 0.1, (1, 16, 16, 3)).astype(np.float32)
    swapped = pixels.copy()
    swapped[:, :8, 8:], swapped[:, 8:, :8] = pixels[:, 8:, :8], pixels[:, :8, 8:]
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    placeless = {
        **params,
        "embeddings": {
            **params["embeddings"],
            "position_embeddings": np.zeros_like(params["embeddings"]["position_embeddings"]),
        },
    }
    apply = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels))
    order = [0, 1, 3, 2, 4]
    moved = apply(placeless, pixels)[:, order]
    np.testing.assert_allclose(apply(placeless, swapped), moved, rtol=1e-4, atol=1e-5)
    assert np.abs(moved[:, 2] - moved[:, 3]).max() > 0.1
    assert np.abs(apply(params, swapped) - apply(params, pixels)[:, order]).max() > 0.1


def test_layer_scale_starts_at_one() -> None:
    model = Dinov2Model(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    layer = params["encoder"]["layer_0"]
    assert np.all(layer["layer_scale1"]["lambda1"] == 1)
    assert np.all(layer["layer_scale2"]["lambda1"] == 1)
    assert np.all(params["embeddings"]["mask_token"] == 0)


@pytest.mark.parametrize(("height", "width"), [(24, 16), (16, 24), (24, 24)])
def test_refuses_another_size(height: int, width: int) -> None:
    pixels = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    with pytest.raises(ValueError, match=f"images of 16x16 pixels, not {height}x{width}"):
        jax.eval_shape(Dinov2Model(CONFIG).init, jax.random.key(0), pixels)
