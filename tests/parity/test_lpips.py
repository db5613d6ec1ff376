"""LPIPS against plain torch.nn layers with the published names and formula (`oracles.py`), all random, float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dtc_jax.config import AlexNetConfig, VGGConfig
from dtc_jax.models.lpips import LPIPS
from dtc_jax.weights import lpips
from dtc_jax.weights.detect import detect
from dtc_jax.weights.mapping import import_params
from dtc_jax.weights.model_folder import unflatten_params
from dtc_jax.weights.tensors import ArraySource, WeightsError
from tests.parity.conversion import assert_exact_round_trip
from tests.parity.naming import fill_randomly

torch = pytest.importorskip("torch")

from tests.parity.oracles import LPIPS as LPIPSOracle  # noqa: E402 (needs PyTorch)

VGG16 = VGGConfig(block_channels=(4, 6, 8, 10, 12), convolutions_per_block=(2, 2, 3, 3, 3))
ALEX = AlexNetConfig(channels=(4, 6, 8, 10, 12))


@pytest.mark.parametrize(("backbone", "smallest"), [(VGG16, 16), (ALEX, 31)], ids=["vgg", "alex"])
def test_distance_and_files(backbone: VGGConfig | AlexNetConfig, smallest: int) -> None:
    oracle = LPIPSOracle(backbone).eval()
    fill_randomly(oracle, seed=1)
    random = np.random.default_rng(2)
    assert LPIPS(backbone).smallest_image == smallest
    pictures = random.uniform(size=(2, 3, smallest, 71, 3)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(*(torch.from_numpy(2 * x - 1).permute(0, 3, 1, 2) for x in pictures)).numpy()
    state = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    found = detect(ArraySource(state))
    assert (found.network, found.config) == ("lpips", backbone)
    params = {"params": unflatten_params(import_params(found.layout, found.source, found.shapes))}
    distance = jax.jit(LPIPS(backbone).apply)
    np.testing.assert_allclose(distance(params, *pictures), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distance(params, pictures[0], pictures[0]), 0, atol=1e-7)
    assert_exact_round_trip(state, found.layout, found.shapes, ignored=2)
    # The heads as they are published, and newer versions' second copy of them.
    heads = {name: array for name, array in state.items() if name.startswith("lin")}
    copies = {name.replace("lin", "lins.", 1): array for name, array in heads.items()}
    alone = detect(ArraySource(heads | copies))
    assert (alone.network, alone.config) == ("lpips_heads", (4, 6, 8, 10, 12))
    assert set(import_params(alone.layout, alone.source, alone.shapes)) == {f"lin_{level}/kernel" for level in range(5)}


def test_squeezenet_is_refused_by_name() -> None:
    state = {f"lin{level}.model.1.weight": np.ones((1, 8, 1, 1), np.float32) for level in range(7)}
    with pytest.raises(WeightsError, match="SqueezeNet"):
        lpips.recognise(ArraySource(state))
