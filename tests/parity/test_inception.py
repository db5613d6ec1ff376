"""FID's Inception against plain torch.nn layers with the published names (`tests/parity/oracles.py`), all random."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import InceptionConfig
from dtc_jax.models.inception import InceptionV3
from dtc_jax.weights.inception import PYTORCH_FID, shapes
from dtc_jax.weights.mapping import torch_shapes
from tests.parity.conversion import assert_exact_round_trip, imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")

from tests.parity import oracles  # noqa: E402 (needs PyTorch)

TOLERANCE = 1e-5
CONFIG = InceptionConfig(channel_divisor=16, num_classes=5)


def random_oracle(config: InceptionConfig, seed: int) -> torch.nn.Module:
    module = oracles.Inception(config.channel_divisor, config.num_classes).eval()
    fill_randomly(module, seed)
    oracles.double_the_variance(module)
    return module


def run_oracle(module: torch.nn.Module, images: np.ndarray, resize: bool) -> list[np.ndarray]:
    """pytorch-fid's preprocessing and the network, on images in [0, 1]."""
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        if resize:
            x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return [tensor.numpy() for tensor in module(2 * x - 1)]


@pytest.mark.parametrize("resize", [False, True], ids=["as-is", "resized"])
def test_features_and_logits(resize: bool) -> None:
    config = dataclasses.replace(CONFIG, resize_input=resize)
    reference = random_oracle(config, seed=1)
    images = np.random.default_rng(2).uniform(size=(2, 107, 91, 3)).astype(np.float32)
    features, logits = run_oracle(reference, images, resize)
    params = imported(reference.state_dict(), PYTORCH_FID, shapes(config))
    model = InceptionV3(config)

    @jax.jit
    def run(params, images):
        return model.apply(params, images), model.apply(params, images, method="logits")

    ours = run(params, images)
    assert ours[0].shape == (2, config.feature_size) == (2, 128)
    assert relative_l2(features[0], features[1]) > 0.01, "the features hardly depend on the image"
    assert features.std() > 0.1
    assert relative_l2(ours[0], features) <= TOLERANCE
    assert relative_l2(ours[1], logits) <= TOLERANCE


def test_published_names_and_shapes() -> None:
    config = presets.fid_inception()
    with torch.device("meta"):
        published = oracles.Inception().state_dict()
    expected = {name: tuple(x.shape) for name, x in published.items() if not name.endswith("num_batches_tracked")}
    assert torch_shapes(PYTORCH_FID, shapes(config)) == expected
    assert config.feature_size == published["fc.weight"].shape[1] == 2048
    # torchvision's count for 1000 classes and no auxiliary classifier, and what eight classes more add.
    trained = sum(tensor.numel() for name, tensor in published.items() if ".running_" not in name and tensor.ndim > 0)
    assert trained == 23_834_568 + 8 * 2049


def test_round_trip_is_exact() -> None:
    state = random_oracle(CONFIG, seed=3).state_dict()
    counters = sum(name.endswith("num_batches_tracked") for name in state)
    assert counters == 94
    assert_exact_round_trip(state, PYTORCH_FID, shapes(CONFIG), ignored=counters)
    without = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert_exact_round_trip(without, PYTORCH_FID, shapes(CONFIG))
