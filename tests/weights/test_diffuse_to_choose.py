"""The parts of our own, and the start of a 9-channel U-Net from a 4-channel one."""

from __future__ import annotations

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.diffuse_to_choose import OWN_PARTS, with_more_inputs
from dtc_jax.weights.mapping import export_tensors, flax_shapes, import_params
from dtc_jax.weights.tensors import ArraySource, LazyTensor
from tests.models.trees import random_tree

SHAPES = DiffuseToChoose(presets.test()).shapes()


@pytest.mark.parametrize("network", OWN_PARTS)
def test_there_and_back_is_exact(network: str) -> None:
    shapes = flax_shapes(SHAPES[network])
    params = {path: random_tree(np.zeros(shape), seed=1) for path, shape in shapes.items()}
    exported = {tensor.name: tensor.read() for tensor in export_tensors(OWN_PARTS[network], params)}
    again = import_params(OWN_PARTS[network], ArraySource(exported), shapes)
    assert set(again) == set(params)
    for path, array in params.items():
        assert again[path].tobytes() == array.tobytes(), path


def test_names() -> None:
    names = {
        network: {tensor.name for tensor in export_tensors(layout, random_arrays(network))}
        for network, layout in OWN_PARTS.items()
    }
    assert names["null_tokens"] == {"embedding"}
    assert names["reference_projection"] == {"weight", "bias"}
    assert {"convs.0.weight", "convs.3.bias"} <= names["hint_adapter"]
    assert {"skips.0.gamma.weight", "middle.beta.bias"} <= names["fusion"]
    assert {"time_embedding.linear_1.weight", "mid_block.attentions.0.proj_in.weight"} <= names["hint_encoder"]


def random_arrays(network: str) -> dict[str, np.ndarray]:
    return {path: np.ones(shape, np.float32) for path, shape in flax_shapes(SHAPES[network]).items()}


def test_more_inputs_are_zeros_at_the_end() -> None:
    kernel, bias = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float16), np.ones(8, np.float16)
    tensors = [
        LazyTensor("conv_in/kernel", kernel.shape, kernel.dtype, lambda: kernel),
        LazyTensor("conv_in/bias", bias.shape, bias.dtype, lambda: bias),
    ]
    wide, same = with_more_inputs(tensors, 9)
    array = wide.read()
    assert wide.shape == array.shape == (3, 3, 9, 8) and array.dtype == wide.dtype == np.float16
    np.testing.assert_array_equal(array[:, :, :4], kernel)
    assert not array[:, :, 4:].any() and same is tensors[1]
    np.testing.assert_array_equal(with_more_inputs(tensors, 4)[0].read(), kernel)
    with pytest.raises(ValueError, match="reads 4 channels already"):
        with_more_inputs(tensors, 3)
