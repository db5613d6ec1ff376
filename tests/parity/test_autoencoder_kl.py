"""AutoencoderKL against diffusers', every tensor random, float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import AutoencoderKLConfig
from dtc_jax.models.autoencoder_kl import AutoencoderKL
from dtc_jax.weights import autoencoder_kl
from tests.parity.conversion import imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5


def oracle(config: AutoencoderKLConfig) -> torch.nn.Module:
    return diffusers.AutoencoderKL.from_config(autoencoder_kl.to_diffusers_config(config)).eval()


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
    params = imported(reference.state_dict(), autoencoder_kl.DIFFUSERS, autoencoder_kl.shapes(config))

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
    params = imported(reference.state_dict(), autoencoder_kl.DIFFUSERS, autoencoder_kl.shapes(config))
    with torch.no_grad():
        expected = reference.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.logvar
    _, logvar = jax.jit(lambda params, images: model.apply(params, images, method="encode"))(params, images)
    assert set(np.unique(logvar[..., 0])) == {-30.0}
    assert set(np.unique(logvar[..., 1])) == {20.0}
    assert relative_l2(logvar, expected.permute(0, 2, 3, 1)) <= TOLERANCE
