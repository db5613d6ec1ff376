"""The distances on the generated world's own labels: their formulas, and that only what is masked counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.config import VGGConfig
from dtc_jax.evaluation.label_features import cut_region, feature_distance, label_features, score_with_labels
from dtc_jax.models.vgg import VGG

CONFIG = VGGConfig(block_channels=(3, 4, 5), convolutions_per_block=(1, 1, 1))


@pytest.fixture(scope="module")
def vgg() -> Any:
    images = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(lambda: VGG(CONFIG).init(jax.random.key(0), images, method="final_features")["params"])
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (random.normal(size=leaf.shape) / 4).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made = {name: random.integers(0, 256, (3, 16, 16, 3), np.uint8) for name in ("result", "truth", "reference")}
    mask = np.zeros((3, 16, 16, 1), np.uint8)
    mask[0, 4:12, 2:10] = mask[1, :, 3:8] = mask[2] = 1
    return {**made, "mask": mask, "result": np.where(mask > 0, made["result"], made["truth"])}


def block_outputs(vgg: Any, image: np.ndarray) -> list[np.ndarray]:
    unit = image.astype(np.float32) / 255
    return [np.asarray(level, np.float64) for level in VGG(CONFIG).apply({"params": vgg}, unit, method="block_outputs")]


def test_distance_is_lpips_formula_averaged_over_the_mask(vgg: Any, images: dict[str, np.ndarray]) -> None:
    expected = np.zeros(3)
    pairs = zip(block_outputs(vgg, images["result"]), block_outputs(vgg, images["truth"]), strict=True)
    for number, levels in enumerate(pairs):
        # LPIPS's own small number, for places without a feature.
        first, second = (level / (np.linalg.norm(level, axis=-1, keepdims=True) + 1e-10) for level in levels)
        size, block = 16 // 2**number, 2**number
        inside = images["mask"].reshape(3, size, block, size, block).mean(axis=(2, 4))
        expected += (((first - second) ** 2).sum(axis=-1) * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
    found = feature_distance(CONFIG, vgg, images["result"], images["truth"], images["mask"])
    assert expected.min() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    same = feature_distance(CONFIG, vgg, images["truth"], images["truth"], images["mask"])
    np.testing.assert_allclose(same, 0, atol=1e-12)


def test_similarity_is_of_the_masks_box_and_the_reference(vgg: Any, images: dict[str, np.ndarray]) -> None:
    result, truth, mask, reference = (images[name] for name in ("result", "truth", "mask", "reference"))
    region = cut_region(result, mask, 16)
    assert region.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(region[2], result[2])
    scores = score_with_labels(CONFIG, vgg, result, truth, mask, reference)
    a, b = (block_outputs(vgg, one)[-1].mean(axis=(1, 2)) for one in (region, reference))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(scores.similarity, 100 * cosine, rtol=1e-5)
    np.testing.assert_allclose(scores.features, label_features(CONFIG, vgg, result), rtol=1e-6)
    # The product itself in the box is as similar as can be.
    filled = np.broadcast_to(reference[2], result.shape)
    whole = np.ones_like(mask)
    own = score_with_labels(CONFIG, vgg, filled, truth, whole, reference)
    assert own.similarity[2] == pytest.approx(100, abs=1e-4) and own.similarity[0] < 99.99
