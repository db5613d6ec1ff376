"""VGG against plain torch.nn layers with torchvision's names and indices, every tensor random, float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dtc_jax.config import VGGConfig
from dtc_jax.models.vgg import VGG
from dtc_jax.weights import vgg
from tests.parity.conversion import imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
# torchvision's `vgg19().features`: indices of the ReLUs relu1_2 ... relu5_2.
VGG19_RELUS = (3, 8, 13, 22, 31)


class Oracle(torch.nn.Module):
    """torchvision's `vgg19` ("cfgs['E']") without its classifier, with the channels of a config."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        channels = 3
        for width, count in zip(config.block_channels, config.convolutions_per_block, strict=True):
            for _ in range(count):
                layers += [torch.nn.Conv2d(channels, width, kernel_size=3, padding=1), torch.nn.ReLU()]
                channels = width
            layers.append(torch.nn.MaxPool2d(kernel_size=2, stride=2))
        self.features = torch.nn.Sequential(*layers)


def test_features_match_torch() -> None:
    config = VGGConfig(block_channels=(4, 6, 8, 10, 12))
    reference = Oracle(config)
    fill_randomly(reference, seed=5)
    images = np.random.default_rng(6).uniform(size=(2, 33, 50, 3)).astype(np.float32)

    expected = []
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]
        for index, layer in enumerate(reference.features[:-1]):
            x = layer(x)
            if index in VGG19_RELUS:
                expected.append(x.permute(0, 2, 3, 1).numpy())
        expected.append(x.permute(0, 2, 3, 1).numpy())

    model = VGG(config)
    params = imported(reference.state_dict(), vgg.TORCHVISION, vgg.shapes(config))

    @jax.jit
    def run(params, images):
        return *model.apply(params, images), model.apply(params, images, method="final_features")

    for number, (actual, wanted) in enumerate(zip(run(params, images), expected, strict=True), start=1):
        name = f"relu{number}_2" if number <= 5 else "relu5_4"
        assert wanted.std() > 0.01, f"{name}: the oracle's output hardly varies"
        assert relative_l2(actual, wanted) <= TOLERANCE, name
