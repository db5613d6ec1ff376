"""LPIPS against plain torch.nn layers with the published names and formula, every tensor random, float32."""

from __future__ import annotations

from typing import Any

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

VGG16 = VGGConfig(block_channels=(4, 6, 8, 10, 12), convolutions_per_block=(2, 2, 3, 3, 3))
ALEX = AlexNetConfig(channels=(4, 6, 8, 10, 12))
# lpips/pretrained_networks.py: torchvision's layers in each slice; a slice ends with the ReLU that is compared.
SLICES = {"vgg": ((0, 4), (4, 9), (9, 16), (16, 23), (23, 30)), "alex": ((0, 2), (2, 5), (5, 8), (8, 10), (10, 12))}


def layers_of(backbone: VGGConfig | AlexNetConfig) -> list[Any]:
    """torchvision's `vgg16().features` or `alexnet().features`, with the channels of a config."""
    if isinstance(backbone, AlexNetConfig):
        a, b, c, d, e = backbone.channels
        sizes = [(3, a, 11, 4, 2), (a, b, 5, 1, 2), (b, c, 3, 1, 1), (c, d, 3, 1, 1), (d, e, 3, 1, 1)]
        layers: list[Any] = []
        for number, (inputs, outputs, side, stride, padding) in enumerate(sizes):
            layers += [torch.nn.Conv2d(inputs, outputs, side, stride, padding), torch.nn.ReLU()]
            if number in (0, 1, 4):
                layers.append(torch.nn.MaxPool2d(3, 2))
        return layers
    layers, channels = [], 3
    for width, count in zip(backbone.block_channels, backbone.convolutions_per_block, strict=True):
        for _ in range(count):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2, 2))
    return layers


class Oracle(torch.nn.Module):
    """lpips/lpips.py's `LPIPS`, its modules named as there, on images in [-1, 1]."""

    def __init__(self, backbone: VGGConfig | AlexNetConfig) -> None:
        super().__init__()
        self.net, layers = torch.nn.Module(), layers_of(backbone)
        kind, channels = (
            ("vgg", backbone.block_channels) if isinstance(backbone, VGGConfig) else ("alex", ALEX.channels)
        )
        for number, (start, stop) in enumerate(SLICES[kind], start=1):
            part = torch.nn.Sequential()
            for index in range(start, stop):
                part.add_module(str(index), layers[index])
            setattr(self.net, f"slice{number}", part)
        for level, width in enumerate(channels):
            head = torch.nn.Module()
            head.model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Conv2d(width, 1, 1, bias=False))
            setattr(self, f"lin{level}", head)
        self.scaling_layer = torch.nn.Module()
        self.scaling_layer.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.scaling_layer.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, a: Any, b: Any) -> Any:
        total = 0
        a, b = ((x - self.scaling_layer.shift) / self.scaling_layer.scale for x in (a, b))
        for level in range(5):
            part = getattr(self.net, f"slice{level + 1}")
            a, b = part(a), part(b)
            unit = [x / (torch.sqrt((x**2).sum(dim=1, keepdim=True)) + 1e-10) for x in (a, b)]
            head = getattr(self, f"lin{level}").model
            total = total + head((unit[0] - unit[1]) ** 2).mean(dim=(1, 2, 3))
        return total


@pytest.mark.parametrize("backbone", [VGG16, ALEX], ids=["vgg", "alex"])
def test_distance_and_files(backbone: VGGConfig | AlexNetConfig) -> None:
    oracle = Oracle(backbone).eval()
    fill_randomly(oracle, seed=1)
    random = np.random.default_rng(2)
    pictures = random.uniform(size=(2, 3, 64, 71, 3)).astype(np.float32)
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
