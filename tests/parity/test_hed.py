"""HED against plain torch.nn layers with ControlNet's names (`tests/parity/oracles.py`), every tensor random."""

from __future__ import annotations

import cv2
import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import HEDConfig
from dtc_jax.models.hed import ControlNetHED
from dtc_jax.models.resize import resize_bilinear
from dtc_jax.weights.hed import CONTROLNET, shapes
from dtc_jax.weights.mapping import torch_shapes
from tests.parity.conversion import assert_exact_round_trip, imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")

from tests.parity import oracles  # noqa: E402 (needs PyTorch)

TOLERANCE = 1e-5
CONFIG = HEDConfig(block_channels=(4, 6, 8, 10, 12))


def oracle(config: HEDConfig) -> torch.nn.Module:
    return oracles.HED(config.block_channels, config.convolutions_per_block).eval()


def random_oracle(config: HEDConfig, seed: int) -> torch.nn.Module:
    """As `fill_randomly`, with means of a photo's size and logits that do not saturate."""
    module = oracle(config)
    fill_randomly(module, seed)
    with torch.no_grad():
        module.norm.mul_(20).add_(110)
        for name, parameter in module.named_parameters():
            if "projection" in name:
                parameter.mul_(0.2)
    return module


def expected_edges(logits: list[torch.Tensor], height: int, width: int) -> np.ndarray:
    """What ControlNet's detector does with the logits, before it rounds to 8 bits, for every image of a batch."""
    stacked = [
        np.stack([cv2.resize(x[0].numpy(), (width, height), interpolation=cv2.INTER_LINEAR) for x in logit])
        for logit in logits
    ]
    return (1 / (1 + np.exp(-np.mean(stacked, axis=0).astype(np.float64))))[..., None]


def test_logits_and_edges() -> None:
    reference = random_oracle(CONFIG, seed=1)
    # Neither side can be halved four times without a remainder: the blocks' sizes are rounded down.
    images = np.random.default_rng(2).uniform(size=(2, 37, 58, 3)).astype(np.float32)
    with torch.no_grad():
        logits = reference(torch.from_numpy(images).permute(0, 3, 1, 2) * 255)
    params = imported(reference.state_dict(), CONTROLNET, shapes(CONFIG))
    model = ControlNetHED(CONFIG)

    @jax.jit
    def run(params, images):
        return model.apply(params, images, method="logits"), model.apply(params, images)

    ours, edges = run(params, images)
    for number, (actual, wanted) in enumerate(zip(ours, logits, strict=True), start=1):
        assert relative_l2(actual, wanted.permute(0, 2, 3, 1)) <= TOLERANCE, f"block {number}"
    wanted = expected_edges(logits, 37, 58)
    assert wanted.std() > 0.05 and 0.02 < wanted.mean() < 0.98, (wanted.mean(), wanted.std())
    assert relative_l2(edges, wanted) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(11, 40), (5, 7), (13, 4)])
def test_resizing_is_torch_and_opencv_bilinear(height: int, width: int) -> None:
    image = np.random.default_rng(3).normal(size=(1, 9, 16, 1)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False
    )
    actual = np.asarray(resize_bilinear(image, height, width))
    np.testing.assert_allclose(actual, wanted.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    opencv = cv2.resize(image[0, :, :, 0], (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(actual[0, :, :, 0], opencv, atol=1e-5)


def test_published_names_and_shapes() -> None:
    config = presets.controlnet_hed()
    with torch.device("meta"):
        published = oracle(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in published.items()}
    assert torch_shapes(CONTROLNET, shapes(config)) == expected
    # VGG-16's convolutions, a projection per block, and the mean.
    count = sum(tensor.numel() for tensor in published.values())
    assert count == 14_714_688 + sum(config.block_channels) + len(config.block_channels) + 3


def test_round_trip_is_exact() -> None:
    assert_exact_round_trip(random_oracle(CONFIG, seed=4).state_dict(), CONTROLNET, shapes(CONFIG))
