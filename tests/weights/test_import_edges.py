"""Importing: variants that not every part has, flags that a base ignores, what a file holds too much, being stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import autoencoder_kl, autoencoder_tiny, command, save_model_folder, unet
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.command import main
from dtc_jax.weights.export_pytorch import export_pipeline
from dtc_jax.weights.initialize_model import Parts, start_from
from dtc_jax.weights.inspect import describe, inspect
from dtc_jax.weights.new_folder import new_folder
from dtc_jax.weights.tensors import WeightsError
from tests.models.trees import random_tree
from tests.weights.published_files import (
    UNET,
    VAE,
    moving_average,
    paint_by_example_unet,
    random_params,
    spelled,
    stable_diffusion_file,
    write,
    write_features,
)

DIFFUSERS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    flags = write_features(tmp_path_factory.mktemp("features"))
    return {"reference_encoder": Path(flags[1]), "vgg": Path(flags[3])}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """diffusers' folder without model_index.json; of the U-Net there is an fp16 variant as well."""
    params = spelled(unet.DIFFUSERS, random_params(unet.shapes(UNET), 1))
    write(tmp_path / "sd" / "unet", DIFFUSERS, params)
    write(tmp_path / "sd" / "unet", f"{DIFFUSERS}.fp16", {name: a.astype(np.float16) for name, a in params.items()})
    write(
        tmp_path / "sd" / "vae",
        DIFFUSERS,
        spelled(autoencoder_kl.DIFFUSERS, random_params(autoencoder_kl.shapes(VAE), 2)),
    )
    return tmp_path / "sd"


def test_parts_without_the_variant_are_taken_plain(base: Path, features: dict[str, Path]) -> None:
    start = start_from(Parts(base=base, **features, variant="fp16"), 32)
    lines = {source.network: str(source) for source in start.sources}
    assert f"{DIFFUSERS}.fp16.safetensors (diffusers' UNet2DConditionModel;" in lines["unet"]
    assert "no fp16 variant" not in lines["unet"] + lines["vgg"]
    assert lines["vae"].endswith(f"{DIFFUSERS}.safetensors (diffusers' AutoencoderKL; no fp16 variant there)")
    assert {tensor.dtype.name for tensor in start.networks["unet"]} == {"float16"}
    with pytest.raises(WeightsError, match="no file of weights of the variant bf16"):
        start_from(Parts(base=base, **features, variant="bf16"), 32)


def test_a_folder_without_its_index_and_taesds_two_files_are_inspected(base: Path, tmp_path: Path) -> None:
    found = inspect(base)
    assert {part.network for part in found.parts} == {"unet", "vae"} and not any(part.problem for part in found.parts)
    whole = random_params(autoencoder_tiny.shapes(autoencoder_tiny.AutoencoderTinyConfig(channels=4)), 0)
    for half, layout in (("encoder", autoencoder_tiny.TAESD_ENCODER), ("decoder", autoencoder_tiny.TAESD_DECODER)):
        own = {path: array for path, array in whole.items() if path.startswith(half)}
        write(tmp_path / "taesd", f"taesd_{half}", spelled(layout, own))
    found = inspect(tmp_path / "taesd")
    assert [part.network for part in found.parts] == ["taesd_encoder", "taesd_decoder"]
    assert not any(part.problem for part in found.parts)


def test_an_exported_base_ignores_no_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ExperimentConfig(model=presets.test())
    folder = save_model_folder(tmp_path / "model", config, random_tree(DiffuseToChoose(config.model).shapes()))
    exported = export_pipeline(open_checkpoint(folder), tmp_path / "exported")
    for flag, value in (("--image-size", "16"), ("--variant", "fp16")):
        assert main(["import", "--base", str(exported), "--output", str(tmp_path / "x"), flag, value]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"leave {flag} out" in said
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["dtc_jax.json", "model_index.json"])
def test_an_export_that_lost_its_description_is_no_plain_stable_diffusion(name: str, tmp_path: Path) -> None:
    """Its trained parts would be left out without a word."""
    config = ExperimentConfig(model=presets.test())
    folder = save_model_folder(tmp_path / "model", config, random_tree(DiffuseToChoose(config.model).shapes()))
    exported = export_pipeline(open_checkpoint(folder), tmp_path / "exported")
    (exported / name).unlink()
    with pytest.raises(WeightsError, match=f"exported: has parts of an exported model, but no {name}"):
        start_from(Parts(base=exported))


def test_what_a_file_holds_too_much(tmp_path: Path, features: dict[str, Path]) -> None:
    file, params = stable_diffusion_file()
    average = moving_average(unet.LDM, params) | {"model_ema.diffusion_modelstrange": np.zeros(3, np.float32)}
    path = write(tmp_path, "sd", file | average | {"strange.weight": np.zeros(2, np.float32)})
    assert "strange* (1)" in describe(inspect(path))
    with pytest.raises(WeightsError, match=r"1 unexpected \(model_ema.diffusion_modelstrange \[3\]\)"):
        start_from(Parts(base=path, **features, ema=True), 32)


def test_paint_by_example_without_its_image_encoder(tmp_path: Path, features: dict[str, Path]) -> None:
    params = random_params(unet.shapes(paint_by_example_unet()), 1)
    write(tmp_path / "unet", DIFFUSERS, spelled(unet.PAINT_BY_EXAMPLE, params))
    write(tmp_path / "vae", DIFFUSERS, spelled(autoencoder_kl.DIFFUSERS, random_params(autoencoder_kl.shapes(VAE), 2)))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PaintByExamplePipeline"}))
    lines = {source.network: str(source) for source in start_from(Parts(base=tmp_path, **features), 32).sources}
    assert lines["null_tokens"].startswith("null_tokens: fresh; ") and "lacks image_encoder" in lines["null_tokens"]


def test_being_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, with which schedulers stop a job, cleans up as Ctrl-C does."""

    def run(_: object) -> int:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        return 0

    earlier = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(command._COMMANDS, "inspect", (command.InspectArguments, run))
    assert main(["inspect", str(tmp_path)]) == 143
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == earlier
