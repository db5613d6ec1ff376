"""First parameters: drawn on the host, as the modules' own initialisers would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dtc_jax import presets
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.initialize import Distribution, distribution_of, initialize
from dtc_jax.models.unet import feature_channels

CONFIG = presets.test()
MODEL = DiffuseToChoose(CONFIG)


def constant_outputs(function: Callable[..., Any], *args: Any) -> set[str]:
    """Paths of a function's outputs that do not depend on its first argument, found without running it."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    random = {id(closed.jaxpr.invars[0])}
    for equation in closed.jaxpr.eqns:
        if any(id(var) in random for var in equation.invars):
            random.update(id(var) for var in equation.outvars)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {path for path, var in zip(paths, closed.jaxpr.outvars, strict=True) if id(var) not in random}


@pytest.mark.parametrize(
    "name", ["unet", "hint_adapter", "fusion", "reference_projection", "vae", "reference_encoder", "vgg"]
)
def test_the_same_tensors_start_from_constants_as_in_the_module(name: str) -> None:
    latent, width = CONFIG.unet.downsampling, CONFIG.unet.cross_attention_dim
    image = jnp.zeros((1, 32, 32, 3))
    inputs = {
        "unet": (jnp.zeros((1, latent, latent, 9)), jnp.zeros(1), jnp.zeros((1, 1, width))),
        "fusion": ([jnp.zeros((1, 1, 1, channels)) for channels in feature_channels(CONFIG.unet)],),
        "reference_projection": (jnp.zeros((1, 1, CONFIG.reference_encoder.hidden_size)),),
        "reference_encoder": (jnp.zeros((1, 16, 16, 3)),),
    }.get(name, (image,))
    module = getattr(MODEL, name)
    expected = constant_outputs(lambda key: module.init(key, *inputs)["params"], jax.random.key(0))
    tree = flatten_dict(MODEL.init(jax.random.key(1))[name], sep="/")
    actual = {path for path, leaf in tree.items() if np.ptp(leaf) == 0}
    assert actual == expected
    ones = {path for path in actual if np.all(tree[path] == 1)}
    assert ones == {path for path in actual if path.endswith(("scale", "lambda1"))}


@pytest.mark.parametrize(
    ("path", "distribution", "initializer"),
    [
        ("unet/conv_in/kernel", "lecun_normal", nn.initializers.lecun_normal()),
        ("vgg/features_0/kernel", "he_normal", nn.initializers.he_normal()),
        ("reference_encoder/embeddings/cls_token", "small_normal", nn.initializers.truncated_normal(0.02)),
        ("null_tokens/embedding", "normal", nn.initializers.normal(1.0)),
    ],
)
def test_distributions_are_flaxs(
    path: str, distribution: Distribution, initializer: nn.initializers.Initializer
) -> None:
    assert distribution_of(path) == distribution
    shape = (3, 3, 20, 400)
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
    actual = initialize(tree, jax.random.key(0))
    (values,) = jax.tree.leaves(actual)
    expected = np.asarray(initializer(jax.random.key(0), shape, jnp.float32))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.02 * expected.std()
    np.testing.assert_allclose(values.std(), expected.std(), rtol=0.02)
    quantiles = [0.0, 0.01, 0.25, 0.75, 0.99, 1.0] if distribution != "normal" else [0.01, 0.25, 0.75, 0.99]
    np.testing.assert_allclose(np.quantile(values, quantiles), np.quantile(expected, quantiles), rtol=0.05)


def test_shapes_are_those_of_init_and_values_follow_the_key() -> None:
    first, again, other = (MODEL.init(jax.random.key(seed)) for seed in (0, 0, 1))
    spec = MODEL.shapes()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), spec
    )
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))
    for network in ("unet", "hint_encoder", "reference_projection", "null_tokens", "vae", "vgg"):
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first[network], other[network]))), network


def test_equal_shapes_get_different_values() -> None:
    blocks = MODEL.init(jax.random.key(0))["unet"]["mid_block"]
    assert not np.array_equal(blocks["resnets_0"]["conv1"]["kernel"], blocks["resnets_1"]["conv1"]["kernel"])


def test_a_tensor_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match="unet/strange: no rule"):
        initialize({"unet": {"strange": jax.ShapeDtypeStruct((1,), jnp.float32)}}, jax.random.key(0))
