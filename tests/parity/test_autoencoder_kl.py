"""AutoencoderKL against diffusers', every tensor random, float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import AutoencoderKLConfig
from dtc_jax.models.autoencoder_kl import AutoencoderKL
from tests.parity.naming import fill_randomly, relative_l2, torch_to_flax

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5


def oracle(config: AutoencoderKLConfig) -> torch.nn.Module:
    levels = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
    ).eval()


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderKLConfig(block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4),
        AutoencoderKLConfig(
            block_out_channels=(8, 8),
            latent_channels=6,
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
        ),
    ],
    ids=["attention", "no-attention"],
)
def test_encode_and_decode_match_diffusers(config: AutoencoderKLConfig) -> None:
    reference = oracle(config)
    fill_randomly(reference, seed=1)
    model = AutoencoderKL(config)
    images = np.random.default_rng(2).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = {"params": torch_to_flax(reference.state_dict(), shapes)}

    with torch.no_grad():
        posterior = reference.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist
        decoded = reference.decode(posterior.mean).sample
    nhwc = [tensor.permute(0, 2, 3, 1).numpy() for tensor in (posterior.mean, posterior.logvar, decoded)]

    @jax.jit
    def run(params, images, latents):
        return *model.apply(params, images, method="encode"), model.apply(params, latents, method="decode")

    for name, actual, expected in zip(("mean", "logvar", "decode"), run(params, images, nhwc[0]), nhwc, strict=True):
        assert expected.std() > 0.1, f"{name}: the oracle's output hardly varies, the comparison would prove nothing"
        assert relative_l2(actual, expected) <= TOLERANCE, name


def test_logvar_is_clipped_as_in_diffusers() -> None:
    config = presets.test().vae
    reference = oracle(config)
    fill_randomly(reference, seed=1)
    latents = config.latent_channels
    with torch.no_grad():
        reference.quant_conv.bias[latents : latents + 2] = torch.tensor([-100.0, 100.0])
    model = AutoencoderKL(config)
    images = np.random.default_rng(2).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = {"params": torch_to_flax(reference.state_dict(), shapes)}
    with torch.no_grad():
        expected = reference.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.logvar
    _, logvar = jax.jit(lambda params, images: model.apply(params, images, method="encode"))(params, images)
    assert set(np.unique(logvar[..., 0])) == {-30.0}
    assert set(np.unique(logvar[..., 1])) == {20.0}
    assert relative_l2(logvar, expected.permute(0, 2, 3, 1)) <= TOLERANCE


def test_sd15_has_the_published_names_shapes_and_count() -> None:
    config = presets.sd15().vae
    with torch.device("meta"):
        published = oracle(config).state_dict()
    shapes = jax.eval_shape(
        AutoencoderKL(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )["params"]
    # Arrays without memory: one zero, strided to the shape.
    torch_to_flax({name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in published.items()}, shapes)
    leaves = jax.tree.leaves(shapes)
    count = sum(leaf.size for leaf in leaves)
    assert (count, len(leaves)) == (83_653_863, 248), f"{count:,} parameters in {len(leaves)} tensors"
