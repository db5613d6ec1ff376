"""VGG against plain torch.nn layers with torchvision's names and indices, every tensor random, float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import VGGConfig
from dtc_jax.models.vgg import VGG
from tests.parity.naming import fill_randomly, relative_l2, torch_to_flax

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
# torchvision's `vgg19().features`: index of each convolution, and of the ReLUs relu1_2 ... relu5_2.
VGG19_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
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
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, method="final_features"), jax.random.key(0), images)
    params = {"params": torch_to_flax(reference.state_dict(), shapes["params"])}

    @jax.jit
    def run(params, images):
        return *model.apply(params, images), model.apply(params, images, method="final_features")

    for number, (actual, wanted) in enumerate(zip(run(params, images), expected, strict=True), start=1):
        name = f"relu{number}_2" if number <= 5 else "relu5_4"
        assert wanted.std() > 0.01, f"{name}: the oracle's output hardly varies"
        assert relative_l2(actual, wanted) <= TOLERANCE, name


def test_vgg19_has_the_published_names_shapes_and_count() -> None:
    config = presets.sd15().vgg
    with torch.device("meta"):
        published = Oracle(config).state_dict()
    assert [name for name in published if name.endswith("weight")] == [
        f"features.{i}.weight" for i in VGG19_CONVOLUTIONS
    ]
    model = VGG(config)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, method="final_features"), jax.random.key(0), images)[
        "params"
    ]
    # Arrays without memory: one zero, strided to the shape.
    torch_to_flax({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in published.items()}, shapes)
    leaves = jax.tree.leaves(shapes)
    count = sum(leaf.size for leaf in leaves)
    assert (count, len(leaves)) == (20_024_384, 32), f"{count:,} parameters in {len(leaves)} tensors"
    loss_only = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert set(shapes) - set(loss_only) == {"features_32", "features_34"}
