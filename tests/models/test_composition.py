"""All networks together: what the model promises as a whole."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from dtc_jax import presets
from dtc_jax.config import HintConfig, TrainingConfig
from dtc_jax.models.conditioning import drop_tokens
from dtc_jax.models.denoiser import denoiser
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from tests.models.trees import random_tree

CONFIG = presets.test()
MODEL = DiffuseToChoose(CONFIG)
SIZE, LATENT = CONFIG.image_size, CONFIG.latent_size
TOKENS, WIDTH = CONFIG.reference_encoder.num_tokens, CONFIG.unet.cross_attention_dim

Step = Callable[..., tuple[list[tuple[Array, Array]], Array]]


@pytest.fixture(scope="module")
def new() -> PyTree:
    """Parameters as training starts from them."""
    return MODEL.init(jax.random.key(0))


@pytest.fixture(scope="module")
def random() -> PyTree:
    """Parameters without a zero: as if trained."""
    return random_tree(MODEL.shapes(), scale=0.4)


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    latent = (2, LATENT, LATENT, CONFIG.vae.latent_channels)
    return {
        "noisy_latents": generator.standard_normal(latent, dtype=np.float32),
        "mask_latent": generator.integers(0, 2, (2, LATENT, LATENT, 1)).astype(np.float32),
        "masked_latents": generator.standard_normal(latent, dtype=np.float32),
        "hint": generator.uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32),
        "tokens": generator.standard_normal((2, TOKENS, WIDTH), dtype=np.float32),
        "timesteps": np.array([400, 400]),
        "keep_hint": np.ones(2, np.float32),
    }


@pytest.fixture(scope="module")
def step() -> Step:
    """One compiled pass through hint path and U-Net: modulations and prediction."""

    def run(
        params: PyTree,
        noisy_latents: Array,
        mask_latent: Array,
        masked_latents: Array,
        hint: Array,
        tokens: Array,
        timesteps: Array,
        keep_hint: Array,
    ) -> tuple[Any, Array]:
        features = MODEL.hint_features(params, hint, masked_latents, timesteps, tokens)
        modulations = MODEL.modulations(params, features, keep_hint)
        return modulations, MODEL.predict(
            params, noisy_latents, mask_latent, masked_latents, timesteps, tokens, modulations
        )

    return jax.jit(run)


@pytest.fixture(scope="module")
def step_without_hint() -> Callable[..., Array]:
    def run(params: PyTree, inputs: dict[str, Array]) -> Array:
        names = ("noisy_latents", "mask_latent", "masked_latents", "timesteps", "tokens")
        return MODEL.predict(params, *(inputs[name] for name in names))

    return jax.jit(run)


class Recorder:
    """Stands for a network: keeps what it is given, returns what it was told to."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self.inputs: tuple[Any, ...] = ()

    def apply(self, _: Any, *inputs: Any, **__: Any) -> Any:
        self.inputs = inputs
        return self.output


@dataclasses.dataclass(frozen=True)
class Recording(DiffuseToChoose):
    """The model with a recorder in the place of its U-Net and hint encoder."""

    recorder: Recorder | None = None

    @property
    def unet(self) -> Any:
        return self.recorder

    @property
    def hint_encoder(self) -> Any:
        return self.recorder


# ----------------------------------------------------------------------------------------------------------- the hint


def test_fusion_starts_as_the_identity(
    new: PyTree, inputs: dict[str, Any], step: Step, step_without_hint: Callable[..., Array]
) -> None:
    plain = step_without_hint(new, inputs)
    _, fused = step(new, **inputs)
    assert np.std(plain) > 0.01
    np.testing.assert_allclose(fused, plain, atol=1e-6)


def test_the_hint_matters_once_trained_and_dropping_it_is_having_none(
    random: PyTree, inputs: dict[str, Any], step: Step, step_without_hint: Callable[..., Array]
) -> None:
    plain = step_without_hint(random, inputs)
    _, dropped_first = step(random, **{**inputs, "keep_hint": np.array([0.0, 1.0], np.float32)})
    _, fused = step(random, **inputs)
    np.testing.assert_allclose(dropped_first[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(dropped_first[1], fused[1], atol=1e-5)
    assert np.abs(fused - plain).max() > 0.1
    _, other_hint = step(random, **{**inputs, "hint": 1 - inputs["hint"]})
    assert np.abs(other_hint - fused).max() > 0.01


def test_hint_does_not_depend_on_the_noisy_latents(random: PyTree, inputs: dict[str, Any], step: Step) -> None:
    assert not any("noisy" in name for name in inspect.signature(MODEL.hint_features).parameters)
    modulations, prediction = step(random, **inputs)
    others, other_prediction = step(random, **{**inputs, "noisy_latents": -inputs["noisy_latents"]})
    assert np.abs(prediction - other_prediction).max() > 0.01
    for a, b in zip(jax.tree.leaves(modulations), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(modulations))


def test_every_condition_reaches_the_prediction(random: PyTree, inputs: dict[str, Any], step: Step) -> None:
    _, prediction = step(random, **inputs)
    for name in ("mask_latent", "masked_latents", "tokens", "timesteps"):
        changed = {**inputs, name: 1 - inputs[name] if name != "timesteps" else np.array([10, 900])}
        _, other = step(random, **changed)
        assert np.abs(other - prediction).max() > 1e-3, name


def test_input_is_noisy_latents_then_mask_then_masked_latents(inputs: dict[str, Any]) -> None:
    recorder = Recorder(inputs["noisy_latents"])
    names = ("noisy_latents", "mask_latent", "masked_latents", "timesteps", "tokens")
    Recording(CONFIG, recorder=recorder).predict({"unet": {}}, *(inputs[name] for name in names))
    (latents, timesteps, tokens, modulations, temb) = recorder.inputs
    np.testing.assert_array_equal(latents[..., :4], inputs["noisy_latents"])
    np.testing.assert_array_equal(latents[..., 4:5], inputs["mask_latent"])
    np.testing.assert_array_equal(latents[..., 5:], inputs["masked_latents"])
    assert timesteps is inputs["timesteps"]
    assert tokens is inputs["tokens"]
    assert modulations is None and temb is None


@pytest.mark.parametrize(("time", "expected"), [("timestep", 400), ("fixed", 0)])
def test_the_hint_encoders_time(time: str, expected: int, inputs: dict[str, Any]) -> None:
    recorder = Recorder((inputs["noisy_latents"],))
    config = dataclasses.replace(CONFIG, hint=dataclasses.replace(CONFIG.hint, time=time))
    model = Recording(config, recorder=recorder)
    model.encode_hint({"hint_encoder": {}}, inputs["masked_latents"], inputs["timesteps"], inputs["tokens"])
    np.testing.assert_array_equal(recorder.inputs[1], [expected] * 2)


def test_hint_encoder_starts_as_a_replica(new: PyTree) -> None:
    unet, replica = flatten_dict(new["unet"], sep="/"), flatten_dict(new["hint_encoder"], sep="/")
    np.testing.assert_array_equal(replica.pop("conv_in/kernel"), unet["conv_in/kernel"][:, :, :4])
    for path, leaf in replica.items():
        np.testing.assert_array_equal(leaf, unet[path])
    left = {path.split("/")[0] for path in unet} - {path.split("/")[0] for path in replica}
    assert left == {"up_blocks_0", "up_blocks_1", "conv_norm_out", "conv_out"}


def test_without_a_hint_path_nothing_of_it_exists(inputs: dict[str, Any]) -> None:
    model = DiffuseToChoose(dataclasses.replace(CONFIG, hint=HintConfig(kind="none")))
    shapes = model.shapes()
    assert set(shapes) == {"unet", "reference_projection", "null_tokens", "vae", "reference_encoder", "vgg"}
    assert set(model.init(jax.random.key(0))) == set(shapes)
    names = ("hint", "masked_latents", "timesteps", "tokens")
    assert model.hint_features(shapes, *(inputs[name] for name in names)) is None
    assert model.modulations(shapes, None) is None


# ------------------------------------------------------------------------------------------------------------ guidance


@pytest.mark.parametrize("unconditional", ["tokens", "both"])
def test_denoiser_is_both_branches_in_one_pass(
    random: PyTree, inputs: dict[str, Any], step: Step, unconditional: str
) -> None:
    _, conditional_expected = step(random, **inputs)
    null = np.broadcast_to(random["null_tokens"]["embedding"], inputs["tokens"].shape)
    keep = np.full(2, float(unconditional == "tokens"), np.float32)
    _, unconditional_expected = step(random, **{**inputs, "tokens": null, "keep_hint": keep})

    def run(params: PyTree, latents: Array, timestep: Array) -> tuple[Array, Array | None]:
        names = ("tokens", "mask_latent", "masked_latents", "hint")
        bound = denoiser(MODEL, params, *(inputs[name] for name in names), unconditional=unconditional)
        return bound(latents, timestep, None)

    conditional, other = jax.jit(run)(random, inputs["noisy_latents"], jnp.int32(400))
    np.testing.assert_allclose(conditional, conditional_expected, atol=1e-4)
    np.testing.assert_allclose(other, unconditional_expected, atol=1e-4)
    assert np.abs(conditional - other).max() > 0.01


def test_denoiser_without_guidance_has_one_branch(random: PyTree, inputs: dict[str, Any]) -> None:
    def run(params: PyTree) -> tuple[Array, Array | None]:
        names = ("tokens", "mask_latent", "masked_latents", "hint")
        bound = denoiser(MODEL, params, *(inputs[name] for name in names), guidance=False)
        return bound(inputs["noisy_latents"], jnp.int32(400), None)

    conditional, other = jax.eval_shape(run, random)
    assert other is None
    assert conditional.shape == inputs["noisy_latents"].shape


def test_dropped_tokens_are_the_null_vector_everywhere(random: PyTree, inputs: dict[str, Any]) -> None:
    result = MODEL.drop_tokens(random, inputs["tokens"], jnp.array([0.0, 1.0]))
    null = random["null_tokens"]["embedding"]
    assert null.shape == (1, 1, WIDTH)
    np.testing.assert_array_equal(result[0], np.broadcast_to(null[0], (TOKENS, WIDTH)))
    np.testing.assert_array_equal(result[1], inputs["tokens"][1])
    low = drop_tokens(jnp.zeros((1, 2, 3), jnp.bfloat16), jnp.ones((1, 1, 3)), jnp.zeros(1))
    assert low.dtype == jnp.bfloat16


# ------------------------------------------------------------------------------------------------------------- latents


def test_latents_scale_mode_and_posterior(new: PyTree) -> None:
    model = DiffuseToChoose(dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, scaling_factor=0.25)))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 2)
    # A sure posterior would hide the noise.
    params = {**new, "vae": random_tree(model.shapes()["vae"], scale=0.2)}

    @jax.jit
    def run(params: PyTree, images: Array, keys: Array) -> tuple[Array, ...]:
        mean, logvar = model.vae_posterior(params, images)
        mode = model.encode_images(params, images)
        swapped = model.encode_images(params, images[::-1], keys[::-1])[::-1]
        sampled = model.encode_images(params, images, keys)
        round_trip = model.decode_latents(params, mode), model.vae_decode(params, mean)
        return mean, logvar, mode, sampled, swapped, *round_trip, model.encode_images(params, images, keys[0])

    mean, logvar, mode, sampled, swapped, decoded, decoded_expected, one_key = run(params, images, keys)
    np.testing.assert_allclose(mode, 0.25 * mean, rtol=1e-5, atol=1e-6)
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys])
    np.testing.assert_allclose(sampled, 0.25 * (mean + np.exp(logvar / 2) * noise), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swapped, sampled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, decoded_expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(one_key[0] - mode[0], one_key[1] - mode[1])


# ----------------------------------------------------------------------------------------------------------- gradients


def test_a_gradient_reaches_every_trainable_parameter(random: PyTree, inputs: dict[str, Any]) -> None:
    trainable = re.compile(TrainingConfig().trainable)
    reference = np.random.default_rng(2).standard_normal((2, SIZE, SIZE, 3), dtype=np.float32)

    def loss(trained: PyTree) -> Array:
        params = {**random, **trained}
        tokens = MODEL.encode_reference(params, reference)
        tokens = MODEL.drop_tokens(params, tokens, jnp.array([1.0, 0.0]))
        features = MODEL.hint_features(params, inputs["hint"], inputs["masked_latents"], inputs["timesteps"], tokens)
        modulations = MODEL.modulations(params, features, jnp.ones(2))
        names = ("noisy_latents", "mask_latent", "masked_latents", "timesteps")
        return jnp.mean(jnp.square(MODEL.predict(params, *(inputs[name] for name in names), tokens, modulations)))

    trained = {name: tree for name, tree in random.items() if trainable.match(name)}
    assert set(random) - set(trained) == {"vae", "reference_encoder", "vgg"}
    gradients = flatten_dict(jax.jit(jax.grad(loss))(trained), sep="/")
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients.values())
    scale = max(np.abs(gradient).max() for gradient in gradients.values())
    without = [path for path, gradient in gradients.items() if np.abs(gradient).max() < 1e-9 * scale]
    assert not without


def test_full_size_has_the_papers_networks() -> None:
    shapes = DiffuseToChoose(presets.sd15()).shapes()
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    # SD1.5's 859,520,964 with five more input channels.
    assert sizes["unet"] == 859_520_964 + 5 * 9 * 320
    assert sizes["reference_projection"] == 1536 * 768 + 768
    assert sizes["null_tokens"] == 768
    channels = (320,) * 4 + (640,) * 3 + (1280,) * 6
    assert sizes["fusion"] == sum(2 * (width * width + width) for width in channels)
    assert shapes["hint_encoder"]["conv_in"]["kernel"].shape == (3, 3, 4, 320)
    assert shapes["hint_adapter"]["convs_3"]["kernel"].shape == (3, 3, 96, 4)
