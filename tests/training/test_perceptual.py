"""What the perceptual term selects: samples, a window of the picture, a decoder; and where its gradient goes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dtc_jax import presets
from dtc_jax.config import AutoencoderTinyConfig, ConfigError, ExperimentConfig, LossConfig, TrainingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.initialize import initialize
from dtc_jax.models.vgg import perceptual_distance
from dtc_jax.training import perceptual as module
from dtc_jax.training.perceptual import (
    chosen_rows,
    decode_window,
    least_noisy,
    perceptual_groups,
    perceptual_shares,
    perceptual_term,
    window_origin,
)
from dtc_jax.training.sharding import batch_sharding, make_mesh

FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CONFIG = ExperimentConfig(
    # Latents of the sizes that TAESD's smallest relative has: factor 2, four channels.
    model=dataclasses.replace(
        presets.test(),
        image_size=32,
        taesd=AutoencoderTinyConfig(channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)),
    ),
    training=TrainingConfig(compute_dtype="float32"),
)


def change(**loss: Any) -> ExperimentConfig:
    return dataclasses.replace(CONFIG, loss=LossConfig(**loss))


@pytest.mark.parametrize(
    "batch_size, fraction, expected",
    [
        (32, 0.25, (4, 1)),
        (6, 0.5, (2, 1)),
        (8, 0.75, (4, 3)),
        (64, 1.0, (1, 1)),
        (6, 0.01, (6, 1)),
        (1, 0.3, (1, 1)),
        (64, 0.3, (64, 19)),
    ],
)
def test_groups(batch_size: int, fraction: float, expected: tuple[int, int]) -> None:
    assert perceptual_groups(batch_size, fraction) == expected
    group, chosen = expected
    # As many as rounding says, in groups that divide the batch.
    assert batch_size % group == 0 and chosen * (batch_size // group) == max(1, round(batch_size * fraction))


def test_least_noisy_of_each_group() -> None:
    timesteps = jnp.array([900, 5, 300, 700, 20, 100])
    rows = jnp.arange(6.0)
    assert [part.tolist() for part in least_noisy(timesteps, 0.5, rows, -rows)] == [[1, 2, 4], [-1, -2, -4]]
    assert least_noisy(timesteps, 0.01, rows)[0].tolist() == [1]
    assert least_noisy(timesteps, 1.0, rows)[0] is rows
    assert chosen_rows(timesteps, 2 / 3).tolist() == [[1, 2], [1, 2]]


def test_shares_are_a_mean_over_those_that_count() -> None:
    timesteps = jnp.array([900, 5, 300, 700, 600, 800])
    assert perceptual_shares(timesteps, LossConfig()).tolist() == pytest.approx([1 / 6] * 6)
    half = LossConfig(perceptual_fraction=0.5)
    assert perceptual_shares(timesteps, half).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3, 0])
    early = LossConfig(perceptual_fraction=0.5, perceptual_max_timestep=300)
    assert perceptual_shares(timesteps, early).tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert perceptual_shares(timesteps, LossConfig(perceptual_max_timestep=4)).tolist() == [0] * 6


def mask_of(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((32, 32, 1), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def test_window_is_centred_and_stays_in_the_picture() -> None:
    boxes = [(8, 24, 8, 24), (0, 2, 30, 32), (20, 21, 9, 10), (4, 10, 0, 32), (0, 0, 0, 0)]
    # A window of 16 pixels, latents of 2: corners from 0 to 8.
    expected = []
    for top, bottom, left, right in boxes:
        centre = ((top + bottom) / 2, (left + right) / 2) if bottom else (16, 16)
        expected.append([min(max(np.floor((c - 8) / 2 + 0.5), 0), 8) for c in centre])
    masks = jnp.asarray(np.stack([mask_of(*box) for box in boxes]))
    assert window_origin(masks, 16, 2).tolist() == expected
    assert expected[:2] == [[4, 4], [0, 8]]


def test_window_decodes_what_its_halo_lets_it_see() -> None:
    """A decoder that reads one latent to each side: the window is the same part of the whole picture, to the bit."""
    random = np.random.default_rng(0)
    latents = jnp.asarray(random.normal(size=(3, 16, 16, 4)), jnp.float32)

    def decode(latents: jax.Array) -> jax.Array:
        padded = jnp.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)))
        sums = sum(padded[:, i : i + latents.shape[1], j : j + latents.shape[2]] for i in range(3) for j in range(3))
        return sums[..., :3].repeat(2, 1).repeat(2, 2)

    origin = jnp.array([[5, 3], [0, 12], [12, 0]])
    found = decode_window(decode, latents, origin, 4, 2)
    whole = decode(latents)
    for row, (top, left) in enumerate(origin.tolist()):
        np.testing.assert_array_equal(found[row], whole[row, 2 * top : 2 * top + 8, 2 * left : 2 * left + 8])


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    model = DiffuseToChoose(CONFIG.model)
    shapes = {name: model.shapes()[name] for name in ("vae", "vgg")}
    return initialize({**shapes, "taesd": model.taesd_shapes()}, jax.random.key(0))


def inputs(count: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(1)
    x0_hat = jnp.asarray(random.normal(size=(count, 16, 16, 4)), jnp.float32)
    scene = jnp.asarray(random.uniform(-1, 1, (count, 32, 32, 3)), jnp.float32)
    return x0_hat, scene, jnp.asarray(np.stack([mask_of(0, 6, 20, 32), mask_of(14, 20, 10, 26)])[:count])


def run(config: ExperimentConfig, params: Any, *arrays: Any) -> jax.Array:
    term: Callable = jax.jit(perceptual_term(DiffuseToChoose(config.model), config), compiler_options=FAST_COMPILE)
    return term(params, *arrays)


def test_window_is_compared_with_the_same_part_of_the_scene(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a halo as wide as the picture everything is decoded, and of it the right part must be compared."""
    monkeypatch.setattr(module, "HALO", 16)
    x0_hat, scene, mask = inputs()
    found = run(change(perceptual_window=16), params, x0_hat, scene, mask)
    model = DiffuseToChoose(CONFIG.model)
    decoded = model.decode_latents(params, x0_hat)
    # The second mask's window would begin at pixel 9: between two latents, of which the next is taken.
    for row, (top, left) in enumerate([(0, 16), (10, 10)]):
        part = (slice(row, row + 1), slice(top, top + 16), slice(left, left + 16))
        features = [model.vgg_features(params, images[part]) for images in (decoded, scene)]
        np.testing.assert_allclose(found[row], perceptual_distance(*features)[0], rtol=1e-4)


def test_decoder_is_taesd(params: dict[str, Any]) -> None:
    x0_hat, scene, mask = inputs()
    found = run(change(perceptual_decoder="taesd"), {n: params[n] for n in ("taesd", "vgg")}, x0_hat, scene, mask)
    model = DiffuseToChoose(CONFIG.model)
    decoded = model.taesd.apply({"params": params["taesd"]}, x0_hat, method="decode")
    expected = perceptual_distance(model.vgg_features(params, decoded), model.vgg_features(params, scene))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["vae", "taesd"])
def test_gradient_goes_to_the_latents_alone(decoder: Any, params: dict[str, Any]) -> None:
    config = change(perceptual_decoder=decoder)
    term = perceptual_term(DiffuseToChoose(config.model), config)
    x0_hat, scene, mask = inputs(1)

    @partial(jax.jit, compiler_options=FAST_COMPILE)
    def gradients(params: Any, x0_hat: jax.Array) -> Any:
        return jax.grad(lambda params, x0_hat: term(params, x0_hat, scene, mask).sum(), argnums=(0, 1))(params, x0_hat)

    of_params, of_latents = gradients(params, x0_hat)
    assert float(jnp.abs(of_latents).max()) > 1e-4
    assert {float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(of_params)} == {0.0}


def test_window_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"perceptual_window = 15 must be a multiple of 2"):
        change(perceptual_window=15)
    with pytest.raises(ConfigError, match=r"perceptual_window = 34 must be .* at most\s+model.image_size = 32"):
        change(perceptual_window=34)


def test_taesd_must_have_the_same_latents() -> None:
    with pytest.raises(ConfigError, match=r"needs the latent channels and factor of model.vae, 4 and 2, not 4 and 8"):
        ExperimentConfig(model=presets.test(), loss=LossConfig(perceptual_decoder="taesd"))


def largest_moved(text: str) -> int:
    """Elements of the largest array that a compiled program moves between devices."""
    sizes = [0]
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)\(", line)
        for shape in re.findall(r"\[([\d,]*)\]", match[1]) if match else []:
            sizes.append(int(np.prod([int(size) for size in shape.split(",") if size])))
    return max(sizes)


@pytest.mark.parametrize("batch_size, local", [(32, True), (8, False)])
def test_no_picture_moves_between_devices(batch_size: int, local: bool) -> None:
    """Four samples on each of eight devices: each chooses among its own. With one on each they must move: a control."""
    mesh = make_mesh(1, jax.devices()[:8])
    sharded, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    specs = [
        jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharded)
        for shape, dtype in [((), jnp.int32), ((16, 16, 4), jnp.float32), ((32, 32, 3), jnp.float32)]
    ]
    mask = jax.ShapeDtypeStruct((batch_size, 32, 32, 1), jnp.float32, sharding=sharded)

    def loss(latents: jax.Array, timesteps: jax.Array, scene: jax.Array, mask: jax.Array) -> jax.Array:
        x0_hat, scene, mask = least_noisy(timesteps, 0.25, latents, scene, mask)
        origin = window_origin(mask, 16, 2)
        pixels = decode_window(lambda latents: latents[..., :3].repeat(2, 1).repeat(2, 2), x0_hat, origin, 8, 2)
        return jnp.square(pixels - module.crop(scene, origin * 2, 16)).mean()

    gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(whole, sharded))
    text = gradient.lower(specs[1], specs[0], specs[2], mask).compile().as_text()
    assert "all-reduce" in text
    assert (largest_moved(text) < 16 * 16) == local
