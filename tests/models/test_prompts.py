"""Prompts as conditions: whose they are, and guidance against an empty prompt, whose tokens differ."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from dtc_jax import presets
from dtc_jax.config import CLIPTextConfig, ConfigError, ReferenceConfig, config_from_json, config_to_json
from dtc_jax.models.denoiser import denoiser
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.dreampaint import TEXT, at_test_size
from tests.models.trees import random_tree

CONFIG = at_test_size()
MODEL = DiffuseToChoose(CONFIG.model)
compiled = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


@pytest.fixture(scope="module")
def params() -> PyTree:
    return random_tree(MODEL.shapes(), scale=0.4)


def test_networks() -> None:
    shapes = MODEL.shapes()
    assert set(shapes) == {"unet", "vae", "vgg", "reference_encoder", "prompts", "null_tokens"}
    assert {leaf.shape for name in ("prompts", "null_tokens") for leaf in jax.tree.leaves(shapes[name])} == {(1, 24, 8)}
    assert CONFIG.model.prompted and CONFIG.model.num_reference_tokens == 24
    drawn = MODEL.init(jax.random.key(0))
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_each_sample_has_its_prompt(params: PyTree) -> None:
    tokens = MODEL.prompts(params, jnp.array([0, 1, 0], jnp.uint8))
    product, class_prompt = params["prompts"]["product"][0], params["prompts"]["class"][0]
    np.testing.assert_array_equal(tokens, np.stack([product, class_prompt, product]))
    dropped = MODEL.drop_tokens(params, tokens, jnp.array([0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(dropped[0], params["null_tokens"]["embedding"][0])
    np.testing.assert_array_equal(dropped[1:], tokens[1:])
    np.testing.assert_array_equal(
        MODEL.null_tokens(params, tokens), np.repeat(params["null_tokens"]["embedding"], 3, axis=0)
    )


def test_both_branches_attend_to_their_own_tokens(params: PyTree) -> None:
    """What is computed before the loop, against two plain passes; the empty prompt's tokens all count."""
    images = 2
    random = np.random.default_rng(0)
    mask, masked = random.integers(0, 2, (2, 8, 8, 1)).astype(np.float32), random.standard_normal((2, 8, 8, 4))
    masked, latents = masked.astype(np.float32), random.standard_normal((2 * images, 8, 8, 4)).astype(np.float32)
    tokens = random.standard_normal((2, 24, 8)).astype(np.float32)

    def both(params: PyTree) -> Any:
        bound = denoiser(MODEL, params, tokens, mask, masked, None, images_per_case=images)
        assert bound.guidance
        return bound(latents, jnp.int32(400)), bound.conditional(latents, jnp.int32(400))[0]

    def plain(params: PyTree, tokens: Any) -> Any:
        rows = [np.repeat(array, images, axis=0) for array in (mask, masked)]
        return MODEL.predict(params, latents, *rows, jnp.full(2 * images, 400), tokens)

    (conditional, unconditional), alone = compiled(both)(params)
    run = compiled(plain)
    expected = run(params, np.repeat(tokens, images, axis=0))
    np.testing.assert_allclose(conditional, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-5)
    empty = np.repeat(params["null_tokens"]["embedding"], 2 * images, axis=0)
    without = run(params, empty)
    np.testing.assert_allclose(unconditional, without, rtol=1e-4, atol=1e-5)
    first_alone = run(params, np.broadcast_to(empty[:, :1], empty.shape))
    assert np.abs(first_alone - without).max() > 1e-2


def test_a_text_encoder_asks_for_a_model_without_references() -> None:
    model = CONFIG.model
    with pytest.raises(ConfigError, match=r"model.reference.projection = dense: a text encoder"):
        dataclasses.replace(model, reference=ReferenceConfig())
    with pytest.raises(
        ConfigError, match=r"model.reference.projection = none: a text encoder .* an image encoder anothe"
    ):
        dataclasses.replace(presets.test(), reference=ReferenceConfig(projection="none"))
    with pytest.raises(ConfigError, match=r"model.hint.kind = reference, .* sees no reference"):
        dataclasses.replace(model, hint=presets.test().hint)
    wide = dataclasses.replace(TEXT, hidden_size=16)
    with pytest.raises(ConfigError, match=r"hidden_size = 16 must be unet.cross_attention_dim = 8"):
        dataclasses.replace(model, reference_encoder=wide)
    with pytest.raises(ConfigError, match="takes no reference photo"):
        _ = model.reference_size
    with pytest.raises(ConfigError, match=r"data.kind = procedural, stage = diffusion: photos of one product"):
        dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, kind="procedural"))
    for trained in ("^(unet|reference_encoder)/", "null_tokens", "^prompts"):
        with pytest.raises(ConfigError, match="but prompts are encoded once, before training"):
            dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, trainable=trained))
    assert config_from_json(config_to_json(CONFIG)) == CONFIG
    assert isinstance(config_from_json(config_to_json(CONFIG)).model.reference_encoder, CLIPTextConfig)
