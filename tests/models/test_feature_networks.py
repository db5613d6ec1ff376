"""Inception's pooling, and sizes of CLIP, Inception and HED that cannot work; parity is in tests/parity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, ConfigError, HEDConfig, InceptionConfig
from dtc_jax.models.inception import average_pool_3x3, max_pool_3x3
from dtc_jax.weights import dinov2, vgg


def test_averages_leave_the_padding_out() -> None:
    ones = np.ones((1, 4, 5, 2), np.float32)
    np.testing.assert_allclose(average_pool_3x3(ones), ones, rtol=1e-6)
    ramp = np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(average_pool_3x3(ramp)[0, 0, :, 0], [0.5, 1.0, 1.5])


def test_maxima_are_not_lifted_by_the_padding() -> None:
    negative = -np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(max_pool_3x3(negative)[0, 0, :, 0], [-1, -1, -2, -3, -4])
    tall = np.broadcast_to(negative, (1, 3, 5, 1))
    np.testing.assert_array_equal(max_pool_3x3(tall, stride=2)[0, :, :, 0], [[-1, -3]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CLIPVisionConfig(image_size=30), "not divisible by patch_size = 14"),
        (lambda: CLIPTextConfig(num_attention_heads=7), "not divisible by num_attention_heads = 7"),
        (lambda: CLIPConfig(text=CLIPTextConfig(projection_dim=1)), "must equal"),
        (lambda: InceptionConfig(channel_divisor=3), "must be 1, 2, 4, 8 or 16"),
        (lambda: HEDConfig(block_channels=(4,)), "same length"),
    ],
)
def test_sizes_that_cannot_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_presets_have_the_published_numbers_of_parameters() -> None:
    """torchvision's convolutions; facebookresearch/dinov2's modules, with positions for 518 pixels."""
    counted = {
        "vgg16": vgg.shapes(presets.vgg16()),
        "vgg19": vgg.shapes(presets.vgg19()),
        "dinov2 small": dinov2.shapes(presets.dinov2("small", image_size=518)),
        "dinov2 base": dinov2.shapes(presets.dinov2("base", image_size=518)),
        "dinov2 large": dinov2.shapes(presets.dinov2("large", image_size=518)),
    }
    assert {name: sum(map(math.prod, shapes.values())) for name, shapes in counted.items()} == {
        "vgg16": 14_714_688,
        "vgg19": 20_024_384,
        "dinov2 small": 22_056_576,
        "dinov2 base": 86_580_480,
        "dinov2 large": 304_368_640,
    }
