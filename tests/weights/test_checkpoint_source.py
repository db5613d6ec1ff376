"""Of an unfinished run: the moving average, or the parameters that are trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, config_to_json
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.model_folder import ModelFolderError, flatten_params
from dtc_jax.weights.run_folder import checkpoint_config, load_checkpoint
from dtc_jax.weights.sources import Source, write_sources

FROZEN = ("vae", "reference_encoder", "vgg")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = ExperimentConfig(model=presets.test())
    params = DiffuseToChoose(config.model).init(jax.random.key(0))
    frozen = {name: params.pop(name) for name in FROZEN}
    save_model_folder(folder / "frozen", config, frozen)
    write_sources(folder / "frozen", [Source(network="vae", origin="sd15", licence="CreativeML OpenRAIL-M")])
    (folder / "config.json").write_text(config_to_json(config))
    trained = flatten_params(params)
    state = {"params": trained, "ema": {path: array + 1 for path, array in trained.items()}}
    earlier = {"params": trained, "ema": {path: array + 2 for path, array in trained.items()}}
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        manager.save(5, args=ocp.args.Composite(state=ocp.args.StandardSave(earlier)))
        manager.save(7, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    return folder


def test_average_and_parameters(run_folder: Path) -> None:
    average, trained = open_checkpoint(run_folder), open_checkpoint(run_folder, "params")
    assert set(average.networks) == set(DiffuseToChoose(average.config.model).shapes())
    kernel = trained.networks["unet"].read("conv_in/kernel")
    np.testing.assert_array_equal(average.networks["unet"].read("conv_in/kernel"), kernel + 1)
    np.testing.assert_array_equal(*(c.networks["vae"].read("quant_conv/kernel") for c in (average, trained)))
    assert [source.origin for source in average.sources] == ["sd15"]


def test_shipped_model_and_no_model(tmp_path: Path) -> None:
    shipped = open_checkpoint(None)
    assert shipped.config.name == "tiny" and "unet" in shipped.networks
    with pytest.raises(ModelFolderError, match="neither a model folder"):
        open_checkpoint(tmp_path)


def test_one_checkpoint_of_a_run(run_folder: Path) -> None:
    newest, earlier = open_checkpoint(run_folder), open_checkpoint(run_folder / "checkpoints" / "5")
    kernel = newest.networks["unet"].read("conv_in/kernel")
    np.testing.assert_allclose(earlier.networks["unet"].read("conv_in/kernel"), kernel + 1, rtol=0, atol=1e-6)
    assert [source.origin for source in earlier.sources] == ["sd15"]
    config, params = load_checkpoint(run_folder / "checkpoints" / "5", networks=("unet",))
    np.testing.assert_array_equal(params["unet"]["conv_in"]["kernel"], earlier.networks["unet"].read("conv_in/kernel"))
    assert checkpoint_config(run_folder / "checkpoints" / "5") == config
    with pytest.raises(ModelFolderError, match="checkpoints/6: no such checkpoint; there is 5, 7"):
        load_checkpoint(run_folder / "checkpoints" / "6")


def test_a_damaged_checkpoint_is_one_line(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "7" / "state")
    with pytest.raises(ModelFolderError, match="checkpoints/7: cannot be read"):
        load_checkpoint(tmp_path / "run")
