"""The tiny model's autoencoder: patches, principal components and the zero-initialised corrections."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dtc_jax.config import PatchAutoencoderConfig
from dtc_jax.models.initialize import initialize
from dtc_jax.models.patch_autoencoder import (
    PatchAutoencoder,
    depth_to_space,
    principal_components,
    space_to_depth,
)

CONFIG = PatchAutoencoderConfig(latent_channels=5, patch_size=2, hidden_channels=8, num_blocks=1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth random pictures in [-1, 1], taller than wide."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (16, 4, 3, 3))
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return np.float32(0.8 * fine + 0.2 * rng.uniform(-1, 1, fine.shape))


@pytest.fixture(scope="module")
def params(images: np.ndarray) -> dict:
    """First parameters, with the principal components in the linear layers."""
    shapes = jax.eval_shape(PatchAutoencoder(CONFIG).init, jax.random.key(0), images)["params"]
    result = initialize({"vae": shapes}, jax.random.key(1))["vae"]
    for part, layer in principal_components(images, CONFIG).items():
        result[part].update(layer)
    return result


def test_space_to_depth_keeps_a_patch_together() -> None:
    image = np.arange(1 * 4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    patches = np.asarray(space_to_depth(image, 2))
    assert patches.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(patches[0, 1, 2].reshape(2, 2, 3), image[0, 2:4, 4:6])
    np.testing.assert_array_equal(np.asarray(depth_to_space(patches, 2)), image)


def test_a_size_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="divisible by 2"):
        space_to_depth(np.zeros((1, 5, 4, 3), np.float32), 2)


def test_starts_as_the_principal_components(images: np.ndarray, params: dict) -> None:
    """With corrections at zero, the reconstruction is numpy's own rank-5 approximation of the patches."""
    model = PatchAutoencoder(CONFIG)
    patches = np.asarray(space_to_depth(images, 2), np.float64).reshape(-1, 12)
    centred = patches - patches.mean(0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ rows[:5].T @ rows[:5] + patches.mean(0)
    result = np.asarray(space_to_depth(model.apply({"params": params}, images), 2)).reshape(-1, 12)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_latents_have_unit_mean_square(images: np.ndarray, params: dict) -> None:
    mean, logvar = PatchAutoencoder(CONFIG).apply({"params": params}, images, method="encode")
    deviations = np.asarray(mean).reshape(-1, 5).std(0)
    assert np.isclose(np.mean(deviations**2), 1, atol=0.02)
    assert np.all(np.diff(deviations) < 0), "stronger components get more weight"
    assert mean.shape == logvar.shape == (16, 8, 6, 5)
    np.testing.assert_array_equal(np.asarray(logvar), -6.0)


def test_corrections_matter_once_they_are_filled(images: np.ndarray, params: dict) -> None:
    flat = flatten_dict(params, sep="/")
    for path in ("encoder/correction/kernel", "decoder/correction/kernel"):
        changed = unflatten_dict({**flat, path: flat[path] + 0.1}, sep="/")
        before = PatchAutoencoder(CONFIG).apply({"params": params}, images)
        after = PatchAutoencoder(CONFIG).apply({"params": changed}, images)
        assert np.abs(np.asarray(after) - np.asarray(before)).max() > 1e-3
