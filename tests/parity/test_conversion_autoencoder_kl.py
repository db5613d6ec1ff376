"""The autoencoder's files against diffusers: written and read by it, with its earlier names, and converted (LDM)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import AutoencoderKLConfig
from dtc_jax.weights import autoencoder_kl
from dtc_jax.weights.detect import detect, detect_networks
from dtc_jax.weights.mapping import export_tensors, import_params, torch_shapes
from dtc_jax.weights.tensors import ArraySource, LazyTensor, open_tensors, with_prefix, write_tensors
from tests.parity.naming import fill_randomly

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

SMALL = AutoencoderKLConfig(block_out_channels=(8, 16, 24), norm_num_groups=4, scaling_factor=0.5)
PLAIN = AutoencoderKLConfig(
    block_out_channels=(8, 8), latent_channels=6, layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
)
BOTH = pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["attention", "no-attention"])


def published(config: AutoencoderKLConfig) -> Any:
    module = diffusers.AutoencoderKL.from_config(autoencoder_kl.to_diffusers_config(config))
    fill_randomly(module, seed=1)
    return module


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def params_of(module: Any, config: AutoencoderKLConfig) -> dict[str, np.ndarray]:
    source = ArraySource({name: tensor.numpy() for name, tensor in module.state_dict().items()})
    return import_params(autoencoder_kl.DIFFUSERS, source, autoencoder_kl.shapes(config))


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_of_diffusers_there_and_back(config: AutoencoderKLConfig, dtype: str, tmp_path: Path) -> None:
    module = published(config).to(getattr(torch, dtype))
    module.save_pretrained(tmp_path / "theirs")
    found = detect(open_tensors(tmp_path / "theirs"))
    assert (found.network, found.layout, found.config) == ("vae", autoencoder_kl.DIFFUSERS, config)
    params = import_params(found.layout, found.source, found.shapes)
    module.save_config(tmp_path / "ours")
    tensors = export_tensors(autoencoder_kl.DIFFUSERS, params)
    write_tensors(tmp_path / "ours", "diffusion_pytorch_model", tensors, dtype=dtype)
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", torch_dtype=getattr(torch, dtype))
    assert_equal(again.state_dict(), module.state_dict())


def test_earlier_names_as_diffusers_still_reads_them(tmp_path: Path) -> None:
    module = published(SMALL)
    params = params_of(module, SMALL)
    module.save_config(tmp_path)
    write_tensors(tmp_path, "diffusion_pytorch_model", export_tensors(autoencoder_kl.DIFFUSERS_EARLIER, params))
    source = open_tensors(tmp_path)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in source.keys()  # noqa: SIM118
    assert_equal(diffusers.AutoencoderKL.from_pretrained(tmp_path).state_dict(), module.state_dict())
    found = detect(source)
    assert (found.layout, found.config) == (autoencoder_kl.DIFFUSERS_EARLIER, SMALL)
    again = import_params(found.layout, found.source, found.shapes)
    assert all(again[path].tobytes() == array.tobytes() for path, array in params.items())


@BOTH
def test_a_single_file_as_diffusers_reads_it(config: AutoencoderKLConfig, tmp_path: Path) -> None:
    module = published(config)
    module.save_config(tmp_path / "config")
    params = params_of(module, config)
    tensors = export_tensors(autoencoder_kl.LDM, params)
    discriminator = LazyTensor("loss.logvar", (), np.dtype(np.float32), lambda: np.float32(1).reshape(()))
    write_tensors(tmp_path, "vae", [*tensors, discriminator])
    state = {f"{autoencoder_kl.LDM_PREFIX}{t.name}": torch.from_numpy(t.read()) for t in tensors}
    sizes = autoencoder_kl.to_diffusers_config(config)
    assert_equal(single_file_utils.convert_ldm_vae_checkpoint(dict(state), sizes), module.state_dict())
    if config.mid_block_add_attention:
        loaded = diffusers.AutoencoderKL.from_single_file(
            str(tmp_path / "vae.safetensors"), config=str(tmp_path / "config")
        )
        assert_equal(loaded.state_dict(), module.state_dict())

    torch.save({"state_dict": {**state, "model.diffusion_model.x": torch.ones(1)}}, tmp_path / "whole.ckpt")
    whole = with_prefix(open_tensors(tmp_path / "whole.ckpt"), autoencoder_kl.LDM_PREFIX)
    for source in (open_tensors(tmp_path / "vae.safetensors"), whole):
        again = import_params(autoencoder_kl.LDM, source, autoencoder_kl.shapes(config))
        assert all(again[path].tobytes() == array.tobytes() for path, array in params.items())


def test_stable_diffusion_at_its_published_size() -> None:
    config = presets.sd15().vae
    assert isinstance(config, AutoencoderKLConfig)
    with torch.device("meta"):
        state = diffusers.AutoencoderKL.from_config(autoencoder_kl.to_diffusers_config(config)).state_dict()
    # One zero per tensor, strided to its shape: no memory.
    theirs = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()}
    (found,) = detect_networks(ArraySource(theirs))
    assert (found.layout, found.config) == (autoencoder_kl.DIFFUSERS, config)
    assert {name: array.shape for name, array in theirs.items()} == torch_shapes(found.layout, found.shapes)
    assert len(theirs) == 248 and sum(array.size for array in theirs.values()) == 83_653_863
    ldm = torch_shapes(autoencoder_kl.LDM, found.shapes)
    single = {f"{autoencoder_kl.LDM_PREFIX}{name}": torch.empty(shape, device="meta") for name, shape in ldm.items()}
    sizes = autoencoder_kl.to_diffusers_config(config)
    converted = single_file_utils.convert_ldm_vae_checkpoint(single, sizes)
    assert {name: tensor.shape for name, tensor in converted.items()} == {n: t.shape for n, t in state.items()}
    (found,) = detect_networks(ArraySource({n: np.broadcast_to(np.float32(0), t.shape) for n, t in single.items()}))
    assert (found.layout, found.config) == (autoencoder_kl.LDM, config)
