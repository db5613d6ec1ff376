"""Parameters before the first step: fresh ones, and what earlier runs and model folders bring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    ConfigError,
    DataConfig,
    ExperimentConfig,
    LossConfig,
)
from dtc_jax.training.initial import check_mask_channel, initial_params, needed_networks
from dtc_jax.weights.model_folder import ModelFolderError, flatten_params, save_model_folder

CONFIG = ExperimentConfig(name="test", model=presets.test())
KEY = jax.random.key(3)


def _filled(params: dict[str, Any], value: float, *networks: str) -> dict[str, Any]:
    return {name: jax.tree.map(lambda leaf: np.full_like(leaf, value), params[name]) for name in networks}


def _equal(one: Any, other: Any) -> bool:
    first, second = flatten_params({"x": one}), flatten_params({"x": other})
    return first.keys() == second.keys() and all(np.array_equal(first[path], second[path]) for path in first)


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    return initial_params(CONFIG, KEY)


def test_networks_of_each_stage(fresh: dict[str, Any]) -> None:
    assert set(fresh) == {
        "unet",
        "hint_encoder",
        "hint_adapter",
        "fusion",
        "reference_projection",
        "null_tokens",
        "vae",
        "reference_encoder",
        "vgg",
    }
    assert set(initial_params(dataclasses.replace(CONFIG, stage="autoencoder"), KEY)) == {"vae"}
    vgg = initial_params(dataclasses.replace(CONFIG, stage="vgg"), KEY)
    assert set(vgg) == {"vgg", "heads"}
    assert set(vgg["heads"]) == {"silhouette", "pattern", "colors", "wall", "floor", "support", "logo"}


def test_the_key_decides(fresh: dict[str, Any]) -> None:
    assert _equal(initial_params(CONFIG, KEY), fresh)
    assert not _equal(initial_params(CONFIG, jax.random.key(4))["unet"], fresh["unet"])


def test_folders_bring_their_networks_and_later_ones_win(fresh: dict[str, Any], tmp_path: Path) -> None:
    first = save_model_folder(tmp_path / "first", CONFIG, _filled(fresh, 1, "vae", "vgg"))
    # A run folder stands for the model in it; float16 on disk comes back as float32.
    save_model_folder(tmp_path / "run" / "model", CONFIG, _filled(fresh, 2, "vgg", "unet"), dtype="float16")
    params = initial_params(CONFIG, KEY, [first, tmp_path / "run"])
    assert _equal(params["vae"], _filled(fresh, 1, "vae")["vae"])
    assert _equal({name: params[name] for name in ("vgg", "unet")}, _filled(fresh, 2, "vgg", "unet"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    untouched = set(fresh) - {"vae", "vgg", "unet", "hint_encoder"}
    assert _equal({name: params[name] for name in untouched}, {name: fresh[name] for name in untouched})


def test_only_what_the_stage_needs_is_taken(fresh: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path / "model", CONFIG, _filled(fresh, 1, "vae", "unet"))
    params = initial_params(dataclasses.replace(CONFIG, stage="autoencoder"), KEY, [folder])
    assert set(params) == {"vae"} and np.all(params["vae"]["encoder"]["conv_in"]["kernel"] == 1)


def test_folder_without_anything_needed(fresh: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path / "model", CONFIG, _filled(fresh, 1, "unet"))
    with pytest.raises(ConfigError, match="model: holds unet, none of which ae needs"):
        initial_params(dataclasses.replace(CONFIG, name="ae", stage="autoencoder"), KEY, [folder])


def test_network_of_another_size(fresh: dict[str, Any], tmp_path: Path) -> None:
    params = _filled(fresh, 1, "vae")
    params["vae"]["encoder"]["conv_in"]["kernel"] = np.zeros((3, 3, 3, 5), np.float32)
    folder = save_model_folder(tmp_path / "model", CONFIG, params)
    with pytest.raises(ModelFolderError, match=r"model: .* misshapen \(vae/encoder/conv_in/kernel is \(3, 3, 3, 5\)"):
        initial_params(CONFIG, KEY, [folder])


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="nowhere: no such folder"):
        initial_params(CONFIG, KEY, [tmp_path / "nowhere"])


def test_hint_encoder_replicates_the_unet_that_was_loaded(fresh: dict[str, Any], tmp_path: Path) -> None:
    unet = save_model_folder(tmp_path / "unet", CONFIG, _filled(fresh, 2, "unet"))
    params = initial_params(CONFIG, KEY, [unet])
    assert {float(value) for leaf in jax.tree.leaves(params["hint_encoder"]) for value in np.unique(leaf)} == {2.0}
    both = save_model_folder(tmp_path / "both", CONFIG, _filled(fresh, 3, "unet", "hint_encoder"))
    params = initial_params(CONFIG, KEY, [both, unet])
    assert {float(value) for leaf in jax.tree.leaves(params["hint_encoder"]) for value in np.unique(leaf)} == {3.0}


def _with_mask_channel(config: ExperimentConfig, value: str) -> ExperimentConfig:
    unet = dataclasses.replace(config.model.unet, mask_channel=value)  # type: ignore[arg-type]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, unet=unet))


def test_masks_of_the_other_polarity_are_refused(fresh: dict[str, Any], tmp_path: Path) -> None:
    keep = _with_mask_channel(CONFIG, "keep")
    by_example = save_model_folder(tmp_path / "pbe", keep, _filled(fresh, 1, "unet", "vae"))
    usual = save_model_folder(tmp_path / "usual", CONFIG, _filled(fresh, 2, "unet"))
    with pytest.raises(ConfigError) as error:
        initial_params(CONFIG, KEY, [by_example])
    assert str(error.value) == (
        f"{by_example}: its U-Net reads masks in which 1 means keep, the experiment's 1 means fill; "
        "train with --model.unet.mask-channel keep"
    )
    with pytest.raises(ConfigError, match=r"usual: .*1 means fill, .*1 means keep; .*--model.unet.mask-channel fill"):
        check_mask_channel(usual, "fill", "keep")
    assert _equal(initial_params(keep, KEY, [by_example])["unet"], _filled(fresh, 1, "unet")["unet"])
    # The U-Net that counts is the last one.
    assert _equal(initial_params(CONFIG, KEY, [by_example, usual])["unet"], _filled(fresh, 2, "unet")["unet"])


def _with_taesd(**loss: Any) -> ExperimentConfig:
    taesd = AutoencoderTinyConfig(channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    model = dataclasses.replace(CONFIG.model, taesd=taesd)
    return dataclasses.replace(CONFIG, model=model, loss=LossConfig(perceptual_decoder="taesd", **loss))


def test_networks_that_the_configuration_needs(fresh: dict[str, Any]) -> None:
    def needed(config: ExperimentConfig = CONFIG, sample_every: int = 0, **cached: Any) -> set[str]:
        training = dataclasses.replace(config.training, sample_every=sample_every)
        return set(needed_networks(dataclasses.replace(config, data=DataConfig(**cached), training=training)))

    everything = set(fresh)
    assert needed() == everything
    assert needed(cached=("tokens",)) == everything - {"reference_encoder"}
    # Sample grids are drawn from pictures.
    assert needed(cached=("tokens",), sample_every=1) == everything
    # The perceptual loss decodes.
    assert needed(cached=("latents",)) == everything
    assert needed(_with_taesd()) == everything | {"taesd"}
    without = _with_taesd()
    assert needed(without, cached=("latents", "tokens")) == everything - {"vae", "reference_encoder"} | {"taesd"}
    # Sample grids are drawn from pictures.
    drawn = dataclasses.replace(without.training, sample_every=1)
    cached = dataclasses.replace(without, data=DataConfig(cached=("latents", "tokens")), training=drawn)
    assert set(needed_networks(cached)) == everything | {"taesd"}
    assert needed(_with_taesd(perceptual_weight=0.0)) == everything - {"vgg"}
    training = dataclasses.replace(CONFIG.training, sample_every=0)
    config = dataclasses.replace(CONFIG, data=DataConfig(cached=("tokens",)), training=training)
    # Nothing is drawn for the others, nor are the rest drawn otherwise.
    params = initial_params(config, KEY)
    assert set(params) == everything - {"reference_encoder"}
    assert _equal(params, {name: fresh[name] for name in params})


def test_a_network_that_a_run_has_done_without(fresh: dict[str, Any], tmp_path: Path) -> None:
    without = set(needed_networks(CONFIG)) - {"vgg"}
    with pytest.raises(ConfigError, match=r"vgg: the run has done without so far, .* with --init-from"):
        initial_params(CONFIG, KEY, held=without)
    folder = save_model_folder(tmp_path / "vgg", CONFIG, _filled(fresh, 0.5, "vgg"))
    assert _equal(initial_params(CONFIG, KEY, [folder], held=without)["vgg"], _filled(fresh, 0.5, "vgg")["vgg"])
    # Those that are trained are in the checkpoint.
    trained = {"unet", "hint_encoder", "hint_adapter", "fusion", "reference_projection", "null_tokens"}
    assert _equal(initial_params(CONFIG, KEY, held=set(needed_networks(CONFIG)) - trained), fresh)


def test_taesd_is_brought_by_a_folder(tmp_path: Path) -> None:
    config = _with_taesd()
    with pytest.raises(ConfigError, match=r"perceptual_decoder = taesd: no folder of --init-from holds TAESD"):
        initial_params(config, KEY)
    # A run that goes on has its own.
    drawn = initial_params(config, KEY, held=needed_networks(config))["taesd"]

    stored = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vae=config.model.taesd))
    filled = jax.tree.map(lambda leaf: np.full_like(leaf, 0.5), drawn)
    folder = save_model_folder(tmp_path / "small", stored, {"vae": filled})
    params = initial_params(config, KEY, [folder])
    assert _equal(params["taesd"], filled) and not _equal(params["vae"], filled)
    named = save_model_folder(tmp_path / "named", config, {"taesd": filled})
    assert _equal(initial_params(config, KEY, [named])["taesd"], filled)


def test_taesd_from_its_published_files(real_weights: Path) -> None:
    vae = AutoencoderKLConfig(block_out_channels=(4, 4, 4, 4), norm_num_groups=2)
    model = dataclasses.replace(CONFIG.model, vae=vae)
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(model, image_size=16), loss=LossConfig(perceptual_decoder="taesd")
    )
    params = initial_params(config, KEY, [real_weights])
    assert params["taesd"]["decoder"]["layers_0"]["kernel"].shape == (3, 3, 4, 64)
    assert params["taesd"]["decoder"]["layers_0"]["kernel"].std() > 0.01
