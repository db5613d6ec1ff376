"""VGG's files in torchvision's layout, there and back, at small widths and at the published size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import VGGConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import vgg
from dtc_jax.weights.detect import detect
from dtc_jax.weights.mapping import export_tensors, flax_shapes, ignored_tensors, import_tensors, torch_shapes
from dtc_jax.weights.tensors import ArraySource, open_tensors
from tests.parity.naming import fill_randomly

torch = pytest.importorskip("torch")

VGG16 = VGGConfig(convolutions_per_block=(2, 2, 3, 3, 3))
VGG19 = presets.sd15().vgg


def published(config: VGGConfig, classifier: int) -> Any:
    """torchvision's VGG: pytorch/vision, torchvision/models/vgg.py at 02a0a90b7ad1e9d69f1f392ad6701eb069f7db02."""
    layers: list[Any] = []
    channels = 3
    for width, count in zip(config.block_channels, config.convolutions_per_block, strict=True):
        for _ in range(count):
            layers += [torch.nn.Conv2d(channels, width, kernel_size=3, padding=1), torch.nn.ReLU(inplace=True)]
            channels = width
        layers.append(torch.nn.MaxPool2d(kernel_size=2, stride=2))
    linear, relu, dropout = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
    module = torch.nn.Module()
    module.features = torch.nn.Sequential(*layers)
    module.classifier = torch.nn.Sequential(
        linear(channels * 49, classifier), relu(), dropout(), linear(classifier, classifier), relu(), dropout(),
        linear(classifier, 1000),
    )  # fmt: skip
    return module


@pytest.mark.parametrize("counts", [(2, 2, 4, 4, 4), (2, 2, 3, 3, 3), (1, 3)])
def test_there_and_back(counts: tuple[int, ...], tmp_path: Path) -> None:
    config = VGGConfig(block_channels=(4, 6, 8, 10, 12)[: len(counts)], convolutions_per_block=counts)
    module = published(config, classifier=2)
    fill_randomly(module)
    # torchvision's published files are older than PyTorch 1.6's format.
    torch.save(module.state_dict(), tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)
    found = detect(open_tensors(tmp_path / "vgg.pth"))
    assert (found.network, found.config) == ("vgg", config)
    params = {tensor.name: tensor.read() for tensor in import_tensors(found.layout, found.source, found.shapes)}
    tensors = [*export_tensors(found.layout, params), *ignored_tensors(found.layout, found.source)]
    assert {tensor.name: tensor.read().tobytes() for tensor in tensors} == {
        name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize(("config", "parameters"), [(VGG16, 138_357_544), (VGG19, 143_667_240)], ids=["16", "19"])
def test_the_published_size(config: VGGConfig, parameters: int) -> None:
    with torch.device("meta"):
        state = published(config, classifier=4096).state_dict()
    # One zero per tensor, strided to its shape: no memory.
    source = ArraySource({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()})
    assert sum(tensor.numel() for tensor in state.values()) == parameters  # as torchvision's documentation says
    found = detect(source)
    assert found.config == config
    expected = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("features.")}
    assert torch_shapes(found.layout, found.shapes) == expected


def test_the_perceptual_loss_takes_what_it_reads() -> None:
    whole = vgg.shapes(VGG19)
    needed = flax_shapes(DiffuseToChoose(presets.sd15()).shapes()["vgg"])
    assert set(whole) - set(needed) == {f"features_{n}/{leaf}" for n in (32, 34) for leaf in ("kernel", "bias")}
    assert all(whole[path] == shape for path, shape in needed.items())
