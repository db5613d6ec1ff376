"""The U-Net against diffusers' `UNet2DConditionModel`, every tensor random, float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dtc_jax.config import UNetConfig
from dtc_jax.models.unet import UNet2DConditionModel, feature_channels
from dtc_jax.weights import unet
from dtc_jax.weights.unet_config import to_diffusers_config
from tests.parity.conversion import imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5
HEIGHT, WIDTH, TOKENS = 8, 16, 5

# SD1.5's structure in small, without one of its equal levels; and another that shares no number with it.
SD15_LIKE = UNetConfig(
    in_channels=4,
    block_out_channels=(8, 16, 24),
    attention_levels=(True, True, False),
    num_attention_heads=2,
    cross_attention_dim=12,
    norm_num_groups=4,
)
OTHER = UNetConfig(
    in_channels=9,
    block_out_channels=(12, 6, 18),
    layers_per_block=1,
    attention_levels=(False, True, True),
    num_attention_heads=3,
    cross_attention_dim=10,
    norm_num_groups=3,
)


def published(config: UNetConfig) -> torch.nn.Module:
    """diffusers' module of the same sizes."""
    return diffusers.UNet2DConditionModel.from_config(to_diffusers_config(config)).eval()


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def run_published(
    module: torch.nn.Module, inputs: np.ndarray, timesteps: np.ndarray, tokens: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Every skip and the middle, as the module makes them, and the prediction."""
    features: list[torch.Tensor] = []
    handles = [module.conv_in.register_forward_hook(lambda _, __, output: features.append(output))]
    for block in module.down_blocks:
        handles.append(block.register_forward_hook(lambda _, __, output: features.extend(output[1])))
    handles.append(module.mid_block.register_forward_hook(lambda _, __, output: features.append(output)))
    with torch.no_grad():
        output = module(nchw(inputs), torch.from_numpy(timesteps), torch.from_numpy(tokens)).sample
    for handle in handles:
        handle.remove()
    return [nhwc(feature) for feature in features], nhwc(output)


def shrink_activations(module: torch.nn.Module, factor: float) -> None:
    """Make what every norm reads small, in place, so that the norms' epsilons count."""
    feeding = ("conv_in", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out")
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            layer = name.rsplit(".", 1)[0]
            if layer.endswith((".to_out.0", ".net.2")) or layer.split(".")[-1] in feeding:
                tensor.mul_(factor)


@pytest.mark.parametrize("config", [SD15_LIKE, OTHER], ids=["sd15-like", "other"])
def test_every_feature_and_the_output(config: UNetConfig) -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((2, HEIGHT, WIDTH, config.in_channels), dtype=np.float32)
    tokens = random.standard_normal((2, TOKENS, config.cross_attention_dim), dtype=np.float32)
    timesteps = np.array([3, 871])
    model = UNet2DConditionModel(config)

    def run(model: UNet2DConditionModel, inputs: jax.Array, timesteps: jax.Array, tokens: jax.Array) -> tuple:
        temb = model.embed_time(timesteps)
        x, skips = model.encode(inputs, temb, tokens)
        middle = model.middle(x, temb, tokens)
        return (*skips, middle), model.decode(middle, skips, temb, tokens)

    apply = jax.jit(lambda variables, *args: model.apply(variables, *args, method=run))
    module = published(config)
    fill_randomly(module)
    for _ in range(2):
        variables = imported(module.state_dict(), unet.DIFFUSERS, unet.shapes(config))
        expected_features, expected = run_published(module, inputs, timesteps, tokens)
        features, output = apply(variables, inputs, timesteps, tokens)
        assert [feature.shape[-1] for feature in features] == list(feature_channels(config))
        errors = [relative_l2(a, b) for a, b in zip(features, expected_features, strict=True)]
        assert max(errors) <= TOLERANCE, errors
        assert relative_l2(output, expected) <= TOLERANCE
        assert np.std(expected) > 0.1
        shrink_activations(module, 2e-3)
