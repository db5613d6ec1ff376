"""The licence of what a model was trained on goes with its weights, from the data set to the card of an export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dtc_jax import presets
from dtc_jax.config import DataConfig, ExperimentConfig
from dtc_jax.data.builders.vitonhd_source import LICENCE
from dtc_jax.data.records import find_data_set
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.position import data_identity
from dtc_jax.training.run_directory import data_notes, prepare_run_dir
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.command import main
from dtc_jax.weights.export_pytorch.card import licence_text
from dtc_jax.weights.sources import Source, write_sources
from dtc_jax.weights.tensor_source import WeightsError
from dtc_jax.weights.training_data import TrainingData, read_training_data
from tests.data.prepared import write
from tests.models.trees import random_tree


def data_set(folder: Path, name: str, **metadata: object) -> Path:
    """A prepared data set of that name, with more said of it."""
    found = find_data_set(write(folder, train=3, test=1)).folder
    (found / "metadata.json").write_text(json.dumps(metadata))
    info = found / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "name": name}))
    return found


def trained(run_dir: Path, data: DataConfig) -> Path:
    """A run folder as the loop leaves it."""
    config = ExperimentConfig(name="licensed", model=presets.test(), data=data)
    prepare_run_dir(config, run_dir, write=True, resumed=False)
    params = random_tree(DiffuseToChoose(config.model).shapes())
    save_model_folder(run_dir / "model", config, params, notes=data_notes(config, run_dir))
    return run_dir


def card(checkpoint: Path, target: Path) -> str:
    assert main(["export", "--checkpoint", str(checkpoint), "--output", str(target)]) == 0
    return (target / "README.md").read_text()


def test_from_the_data_set_to_the_card_and_back(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "vitonhd", "vitonhd", licence=LICENCE)
    run_dir = trained(tmp_path / "run", DataConfig(kind="records", path=str(folder)))
    line = "- training data (vitonhd): [CC BY-NC 4.0](https://github.com/shadow2496/VITON-HD#license): VITON-HD is for "
    for checkpoint in (run_dir, run_dir / "model"):
        text = card(checkpoint, tmp_path / f"exported-{checkpoint.name}")
        assert line in text and ": no commercial use\n" in text and "license: other" in text
    # The way back, and out again.
    assert main(["import", "--base", str(tmp_path / "exported-run"), "--output", str(tmp_path / "back")]) == 0
    assert line in card(tmp_path / "back", tmp_path / "again")


def test_the_licence_is_no_part_of_the_datas_identity(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "data", "mine", licence=LICENCE)
    config = ExperimentConfig(model=presets.test(), data=DataConfig(kind="records", path=str(folder)))
    assert "licence" not in data_identity(config)
    prepare_run_dir(config, tmp_path / "run", write=True, resumed=False)
    file = tmp_path / "run" / "data_set.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "licence"}))
    prepare_run_dir(config, tmp_path / "run", write=True, resumed=True)
    assert json.loads(file.read_text())["licence"] == LICENCE


def test_generated_data_and_data_of_a_team(tmp_path: Path) -> None:
    text = card(trained(tmp_path / "generated", DataConfig()), tmp_path / "first")
    assert "- training data: generated, no licence" in text
    folder = data_set(tmp_path / "data", "shop")
    text = card(trained(tmp_path / "own", DataConfig(kind="records", path=str(folder))), tmp_path / "second")
    assert "- training data (shop): a licence was not recorded" in text


def test_what_was_imported_was_not_trained(tmp_path: Path) -> None:
    config = ExperimentConfig(model=presets.test())
    folder = save_model_folder(tmp_path / "start", config, random_tree(DiffuseToChoose(config.model).shapes()))
    written = Source(network="unet", origin="sd15", layout="LDM's UNetModel", licence="somebody's own words")
    sources = [written, dataclasses.replace(written, network="vgg", licence="BSD-3-Clause")]
    write_sources(folder, sources)
    assert open_checkpoint(folder).data is None
    text = card(folder, tmp_path / "exported")
    assert "training data: none; the weights are as they were imported, nothing was trained here" in text
    # An edited licence is printed as it is, and VGG's only where VGG is exported.
    assert "- unet: somebody's own words\n" in text and "BSD-3-Clause" not in text
    assert "usually published in the layouts" in text
    assert not (tmp_path / "exported" / "data_set.json").exists()
    (folder / "sources.json").write_text(json.dumps([{"network": "unet", "origin": "", "licence": 3}]))
    with pytest.raises(WeightsError, match=r"sources.json: not a list of sources"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [("CC BY-NC 4.0", True), ("for non-commercial research", True), ("CC BY 4.0", False), ("Apache-2.0", False)],
)
def test_what_excludes_commercial_use(licence: str, forbidden: bool) -> None:
    text = licence_text({}, TrainingData("shop", licence), known=True)
    assert ("no commercial use" in text) is forbidden and licence.split()[0] in text


@pytest.mark.parametrize("text", ["{", "[]", "{}", "[" * 100_000], ids=lambda text: text[:5])
def test_damage_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "data_set.json").write_text(text)
    with pytest.raises(WeightsError, match=r"data_set.json: does not say"):
        read_training_data(tmp_path)
