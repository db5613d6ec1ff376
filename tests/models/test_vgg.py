"""VGG: features, classifier, perceptual distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dtc_jax import presets
from dtc_jax.config import VGGConfig
from dtc_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from dtc_jax.models.vgg import VGG, VGGClassifier, max_pool_2x2, perceptual_distance

CONFIG = presets.test().vgg


def test_five_features_each_half_the_size_of_the_one_before() -> None:
    images = jax.ShapeDtypeStruct((2, 32, 49, 3), jnp.float32)
    model = VGG(CONFIG, jnp.bfloat16)
    features, variables = jax.eval_shape(lambda key, x: model.init_with_output(key, x), jax.random.key(0), images)
    assert [feature.shape for feature in features] == [
        (2, 32, 49, 4),
        (2, 16, 24, 4),
        (2, 8, 12, 8),
        (2, 4, 6, 8),
        (2, 2, 3, 8),
    ]
    assert {feature.dtype for feature in features} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_features_are_the_second_convolutions_and_no_more_is_run() -> None:
    config = VGGConfig(block_channels=(4, 5), convolutions_per_block=(1, 4))
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    model = VGG(config)
    features, variables = jax.eval_shape(lambda key, x: model.init_with_output(key, x), jax.random.key(0), images)
    assert [feature.shape[-1] for feature in features] == [4, 5]
    # Indices as in torchvision: convolution 0, ReLU 1, pooling 2, convolutions 3, 5, 7, 9.
    assert set(variables["params"]) == {"features_0", "features_3", "features_5"}
    every = jax.eval_shape(lambda key, x: model.init(key, x, method="final_features"), jax.random.key(0), images)
    assert set(every["params"]) == {"features_0", "features_3", "features_5", "features_7", "features_9"}


def test_images_are_normalised_inside_and_features_are_rectified() -> None:
    """A kernel that passes a channel on shows what comes in."""
    config = VGGConfig(block_channels=(3,), convolutions_per_block=(1,))
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[1, 1] = np.eye(3)
    params = {"features_0": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}
    image = np.random.default_rng(0).uniform(size=(1, 4, 5, 3)).astype(np.float32)
    (feature,) = VGG(config).apply({"params": params}, image)
    normalised = (image - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(feature, np.maximum(normalised, 0), rtol=1e-5, atol=1e-6)
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_max_pool_leaves_out_an_odd_last_row_and_column() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32)
    expected = np.maximum.reduce([x[:, :4:2, :6:2], x[:, 1:4:2, :6:2], x[:, :4:2, 1:6:2], x[:, 1:4:2, 1:6:2]])
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x)), expected)


def test_initialisation_keeps_the_scale_through_all_layers() -> None:
    """With an initialisation for linear layers the last features would be some hundred times smaller."""
    config = VGGConfig(block_channels=(32,) * 5, convolutions_per_block=(2, 2, 4, 4, 4))
    model = VGG(config)
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    final = jax.jit(lambda key, x: model.init_with_output(key, x, method="final_features")[0])(
        jax.random.key(0), images
    )
    assert 0.1 < float(jnp.sqrt(jnp.mean(jnp.square(final)))) < 10


def test_perceptual_distance_is_the_weighted_sum_of_mean_differences() -> None:
    generator = np.random.default_rng(2)
    shapes = [(3, 8, 8, 2), (3, 4, 4, 4), (3, 2, 2, 5), (3, 2, 2, 5), (3, 1, 1, 6)]
    a, b = ([generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2))
    expected = np.zeros(3)
    for x, y, weight in zip(a, b, (0.03125, 0.0625, 0.125, 0.25, 1.0), strict=True):
        expected += weight * np.abs(x - y).reshape(3, -1).mean(axis=1)
    distance = perceptual_distance(a, b)
    assert distance.shape == (3,)
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    np.testing.assert_allclose(
        perceptual_distance(a, b, weights=(0, 0, 0, 0, 2.0)), 2 * np.abs(a[4] - b[4]).mean((1, 2, 3)), rtol=1e-5
    )
    assert np.all(perceptual_distance(a, a) == 0)


def test_perceptual_distance_is_float32_for_bfloat16_features() -> None:
    """1 - 1/1024 is 1 in bfloat16."""
    a = [jnp.ones((1, 4, 4, 8), jnp.bfloat16)]
    b = [jnp.full((1, 4, 4, 8), 1 / 1024, jnp.bfloat16)]
    distance = perceptual_distance(a, b, weights=(1.0,))
    assert distance.dtype == jnp.float32
    assert float(distance[0]) == 1 - 1 / 1024


def test_perceptual_distance_refuses_unequal_levels() -> None:
    level = jnp.zeros((1, 2, 2, 3))
    with pytest.raises(ValueError, match="2 and 2 levels of features with 5 weights"):
        perceptual_distance([level] * 2, [level] * 2)
    with pytest.raises(ValueError, match="1 and 2 levels"):
        perceptual_distance([level], [level] * 2, weights=(1.0, 1.0))


def test_heads_read_the_average_and_the_places() -> None:
    classifier = VGGClassifier({"what": 3, "where": 2})
    generator = np.random.default_rng(7)
    features = generator.uniform(size=(2, 3, 4, 5)).astype(np.float32)
    what = generator.normal(size=(65, 3)).astype(np.float32)
    what[5:] = 0
    where = generator.normal(size=(65, 2)).astype(np.float32)
    where[:5] = 0
    bias = {"what": np.ones(3, np.float32), "where": np.zeros(2, np.float32)}
    params = {"what": {"kernel": what, "bias": bias["what"]}, "where": {"kernel": where, "bias": bias["where"]}}
    logits = classifier.apply({"params": params}, features)
    np.testing.assert_allclose(logits["what"], features.mean((1, 2)) @ what[:5] + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits["where"], features.reshape(2, 60) @ where[5:], rtol=1e-5, atol=1e-5)


def test_network_and_heads_learn_together() -> None:
    """Two labels: which channel is bright, and in which half of the image it is."""
    heads = {"colour": 3, "half": 2}
    vgg = VGG(VGGConfig(block_channels=(8, 8), convolutions_per_block=(2, 2)))
    classifier = VGGClassifier(heads)
    generator = np.random.default_rng(4)
    labels = {name: generator.integers(0, classes, 32) for name, classes in heads.items()}
    images = generator.uniform(0, 0.3, (32, 8, 8, 3)).astype(np.float32)
    for row, (colour, half) in enumerate(zip(labels["colour"], labels["half"], strict=True)):
        images[row, :, 4 * half : 4 * half + 4, colour] += 0.5
    features, variables = vgg.init_with_output(jax.random.key(5), images, method="final_features")
    params = {"vgg": variables["params"], "heads": classifier.init(jax.random.key(6), features)["params"]}
    assert set(params["heads"]) == set(heads)
    optimizer = optax.adam(1e-2)

    def loss(params):
        features = vgg.apply({"params": params["vgg"]}, images, method="final_features")
        logits = classifier.apply({"params": params["heads"]}, features)
        losses = [optax.softmax_cross_entropy_with_integer_labels(logits[name], labels[name]) for name in heads]
        return jnp.mean(jnp.stack(losses)), logits

    @jax.jit
    def train(params):
        def step(state, _):
            params, optimizer_state = state
            gradients, _ = jax.grad(loss, has_aux=True)(params)
            updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
            return (optax.apply_updates(params, updates), optimizer_state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=60)
        return loss(params)[1]

    logits = train(params)
    for name in heads:
        assert logits[name].dtype == jnp.float32
        assert np.mean(np.argmax(logits[name], -1) == labels[name]) == 1.0, name
