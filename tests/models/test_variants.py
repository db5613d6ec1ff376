"""The paper's variants as values of one configuration: fusions, hints, reference encoders."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from dtc_jax import presets
from dtc_jax.config import (
    ConfigError,
    ExperimentConfig,
    FusionConfig,
    HEDConfig,
    HintConfig,
    ModelConfig,
    ReferenceConfig,
    config_from_json,
    config_to_json,
)
from dtc_jax.data.hints import stitched_scene
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.fusion import CrossAttention, Fusion, keep_modulations, modulate
from dtc_jax.models.initialize import initialize
from dtc_jax.models.inputs import CLIP_MEAN, CLIP_STD, normalize_batch
from dtc_jax.models.paint_by_example import PaintByExampleImageEncoder, PaintByExampleProjection
from tests.models.trees import random_tree, trained_tree
from tests.variants import CLIP

TEST = presets.test()
HED = HEDConfig(block_channels=(4, 4), convolutions_per_block=(1, 1))
compiled = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def changed(**fields: Any) -> DiffuseToChoose:
    return DiffuseToChoose(dataclasses.replace(TEST, **fields))


def hinted(kind: str) -> DiffuseToChoose:
    return changed(hint=HintConfig(kind=kind, adapter_channels=(4, 4, 8)), hed=HED)  # type: ignore[arg-type]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---------------------------------------------------------------------------------------------------------- the fusion


def test_addition_adds_a_convolution_of_the_hint() -> None:
    feature, x = random(2, 3, 4, 6), random(2, 3, 4, 6, seed=1)
    fusion = Fusion(FusionConfig(kind="addition"), (6,))
    kernel, bias = random(1, 1, 6, 6, seed=2), random(6, seed=3)
    params = {"middle": {"zero_conv": {"kernel": kernel, "bias": bias}}}
    (modulation,) = fusion.apply({"params": params}, [feature])
    np.testing.assert_allclose(modulate(x, modulation), x + feature @ kernel[0, 0] + bias, rtol=1e-5, atol=1e-5)


def test_cross_attention_is_softmax_attention_of_normed_features() -> None:
    hint, x = random(2, 2, 3, 4), random(2, 2, 3, 4, seed=1)
    layer = CrossAttention(4, num_heads=2, num_groups=2)
    params = random_tree(jax.eval_shape(layer.init, jax.random.key(0), hint)["params"])
    assert {path.split("/")[0] for path in flatten_dict(params, sep="/")} == {
        *("norm", "norm_hint", "to_q", "to_k", "to_v", "to_out")
    }
    keys_values = layer.apply({"params": params}, hint)
    found = layer.apply({"params": params}, x, keys_values, method="attend")

    def normed(array: np.ndarray, name: str) -> np.ndarray:
        groups = array.reshape(2, 6, 2, 2)
        mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
        flat = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(2, 6, 4)
        return flat * params[name]["scale"] + params[name]["bias"]

    query = normed(x, "norm") @ params["to_q"]["kernel"]
    key, value = (normed(hint, "norm_hint") @ params[name]["kernel"] for name in ("to_k", "to_v"))
    mixed = np.zeros((2, 6, 4), np.float32)
    for head in (slice(0, 2), slice(2, 4)):
        scores = query[..., head] @ key[..., head].swapaxes(1, 2) / np.sqrt(2)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed[..., head] = weights @ value[..., head]
    np.testing.assert_allclose(found, x + (mixed @ params["to_out"]["kernel"]).reshape(x.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["addition", "cross_attention"])
def test_fusion_starts_as_the_identity_at_every_place_and_a_dropped_hint_is_one(kind: str) -> None:
    features = [random(2, 4, 4, 4), random(2, 2, 2, 8)]
    fusion = Fusion(FusionConfig(kind=kind), (4, 8), num_heads=2, num_groups=2)  # type: ignore[arg-type]
    shapes = jax.eval_shape(fusion.init, jax.random.key(0), features)["params"]

    def fused(params: PyTree, keep: Array) -> list[Array]:
        modulations = keep_modulations(fusion.apply({"params": params}, features), keep)
        if kind == "addition":
            return [modulate(x + 1, part) for x, part in zip(features, modulations, strict=True)]
        return [
            fusion.apply({"params": params}, x + 1, part, index, method="attend")
            for index, (x, part) in enumerate(zip(features, modulations, strict=True))
        ]

    fresh, trained = initialize({"fusion": shapes}, jax.random.key(0))["fusion"], random_tree(shapes)
    for feature, start, dropped in zip(
        features, fused(fresh, jnp.ones(2)), fused(trained, jnp.array([0.0, 1.0])), strict=True
    ):
        np.testing.assert_array_equal(start, feature + 1)
        np.testing.assert_array_equal(dropped[0], feature[0] + 1)
        assert np.abs(dropped[1] - feature[1] - 1).max() > 1e-2
    # What is trained through a layer of zeros must not be zero itself.
    zeros = {path for path, leaf in flatten_dict(fresh, sep="/").items() if path.endswith("kernel") and not leaf.any()}
    assert {path.split("/")[1] for path in zeros} == {"zero_conv" if kind == "addition" else "to_out"}


def test_pooling_is_films_alone() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.pooled belongs to fusion\.kind = film, not addition"):
        FusionConfig(kind="addition", pooled=True)


# ------------------------------------------------------------------------------------------------------------ the hint


def test_which_networks_each_hint_has() -> None:
    path = {"hint_encoder", "fusion"}
    expected = {"canny": path | {"hint_adapter"}, "hed": path | {"hint_adapter", "hed"}, "latent": path, "none": set()}
    for kind, networks in expected.items():
        shapes = hinted(kind).shapes()
        assert set(shapes) & (path | {"hint_adapter", "hed"}) == networks, kind
        assert set(hinted(kind).init(jax.random.key(0), networks | {"unet"})) == networks | {"unet"}


def test_latent_hint_is_the_encoded_scene_and_nothing_else() -> None:
    model = hinted("latent")
    params = trained_tree(model.shapes())
    hint = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    masked = jnp.full((2, 8, 8, 4), 99.0)
    both = compiled(lambda p: (model.hint_inputs(p, hint, masked), model.encode_images(p, hint * 2 - 1)))
    np.testing.assert_allclose(*both(params), rtol=1e-5, atol=1e-5)


def test_hed_hint_is_the_adapter_on_the_networks_edges() -> None:
    model = hinted("hed")
    params = trained_tree(model.shapes())
    hint = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    masked = random(2, 8, 8, 4)

    @compiled
    def run(params: PyTree) -> tuple[Array, Array, PyTree]:
        edges = model.hed.apply({"params": params["hed"]}, hint)
        assert edges.shape == (2, 16, 16, 1)
        adapted = model.hint_adapter.apply({"params": params["hint_adapter"]}, jnp.repeat(edges, 3, axis=-1))
        gradient = jax.grad(lambda hed: model.hint_inputs({**params, "hed": hed}, hint, masked).sum())(params["hed"])
        return model.hint_inputs(params, hint, masked), adapted + masked, gradient

    found, expected, gradient = run(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_hed_needs_pictures_that_it_can_halve() -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size = 8 is below 16"):
        dataclasses.replace(TEST, image_size=8, hint=HintConfig(kind="hed"))


def test_the_reference_lies_over_the_greyed_scene() -> None:
    scene, canvas = np.full((6, 6, 3), 200, np.uint8), np.zeros((6, 6, 3), np.uint8)
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5] = 1
    canvas[2:4, 2:5] = 50
    canvas[2, 3] = 0  # a black pixel of the product
    expected = np.where(mask[..., None], 128, scene)
    expected[2:4, 2:5] = canvas[2:4, 2:5]
    np.testing.assert_array_equal(stitched_scene(canvas, scene, mask), expected)
    batched = jax.jit(stitched_scene)(canvas[None], scene[None], mask[None])
    assert batched.dtype == np.uint8
    np.testing.assert_array_equal(batched[0], expected)
    np.testing.assert_array_equal(stitched_scene(0 * canvas, scene, mask), np.where(mask[..., None], 128, scene))


# ------------------------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("encoder", ["dinov2", "clip"])
def test_cls_is_the_first_of_all_tokens(encoder: str) -> None:
    fields = {} if encoder == "dinov2" else {"reference_encoder": CLIP}
    every, first = changed(**fields), changed(reference=ReferenceConfig(tokens="cls"), **fields)
    assert (every.config.num_reference_tokens, first.config.num_reference_tokens) == (5, 1)
    params = trained_tree(every.shapes()["reference_encoder"])
    reference = random(2, 16, 16, 3)
    both = compiled(
        lambda p: [model.reference_features({"reference_encoder": p}, reference) for model in (every, first)]
    )
    tokens, found = both(params)
    assert tokens.shape == (2, 5, 16)
    np.testing.assert_allclose(found, tokens[:, :1], rtol=1e-5, atol=1e-5)


def test_clip_reads_references_by_its_own_mean_and_its_tokens_have_passed_the_last_norm() -> None:
    model = changed(reference_encoder=CLIP)
    reference = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    normalized = normalize_batch({"reference": reference}, model.config)["reference"]
    np.testing.assert_allclose(normalized, (reference / 255 - np.float32(CLIP_MEAN)) / CLIP_STD, rtol=1e-4, atol=1e-5)
    params = trained_tree(model.shapes())
    encoder = model.reference_encoder
    both = compiled(
        lambda p: (
            model.reference_features(p, normalized),
            encoder.apply({"params": p["reference_encoder"]}, normalized),
        )
    )
    tokens, (_, pooled) = both(params)
    np.testing.assert_allclose(tokens[:, 0], pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_clip_and_mapper_are_paint_by_examples_encoder(tokens: Any) -> None:
    """Its encoder in two networks, the first frozen: with its weights, its tokens."""
    model = changed(
        reference_encoder=CLIP, reference=ReferenceConfig(tokens=tokens, projection="mapper", mapper_layers=2)
    )
    assert isinstance(model.reference_projection, PaintByExampleProjection)
    pbe = presets.PaintByExampleEncoderConfig(vision=CLIP, mapper_layers=2, projection_dim=8)
    whole = PaintByExampleImageEncoder(pbe)
    reference = random(2, 16, 16, 3)
    weights = trained_tree(jax.eval_shape(whole.init, jax.random.key(0), reference)["params"])
    params = {
        "reference_encoder": weights["model"],
        "reference_projection": {name: weights[name] for name in ("mapper", "final_layer_norm", "proj_out")},
        "null_tokens": {"embedding": weights["uncond_vector"]},
    }
    shapes = model.shapes()
    for name, tree in params.items():
        assert jax.tree.map(lambda leaf: leaf.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, shapes[name])
    both = compiled(lambda p, w: (model.encode_reference(p, reference), whole.apply({"params": w}, reference, tokens)))
    np.testing.assert_allclose(*both(params, weights), rtol=1e-5, atol=1e-5)


def test_sizes_of_other_encoders_come_back_from_json() -> None:
    for model in (changed(reference_encoder=CLIP).config, hinted("hed").config, ModelConfig()):
        config = ExperimentConfig(model=model)
        assert config_from_json(config_to_json(config)) == config
