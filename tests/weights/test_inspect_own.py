"""Inspection of what this package writes: exported folders, their parts, model folders and run folders."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from dtc_jax import presets
from dtc_jax.config import DINOv2Config, ExperimentConfig, ModelConfig, config_to_json
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.command import main
from dtc_jax.weights.dinov2 import POSITIONS
from dtc_jax.weights.export_pytorch import export_pipeline, open_exported
from dtc_jax.weights.inspect import describe, inspect
from dtc_jax.weights.model_folder import flatten_params, is_model_folder
from tests.models.trees import random_tree

PARTS = {
    "unet": "diffusers' UNet2DConditionModel",
    "vae": "diffusers' AutoencoderKL",
    "image_encoder": "transformers' Dinov2Model",
    "reference_projection": "Diffuse to Choose's token projection",
    "null_tokens": "Diffuse to Choose's null tokens",
    "hint_adapter": "Diffuse to Choose's HintAdapter",
    "hint_encoder": "Diffuse to Choose's HintEncoder",
    "fusion": "Diffuse to Choose's Fusion",
    "vgg": "torchvision's VGG",
}


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    base = presets.test()
    # The published position table is of another size than the one that is exported.
    reference = DINOv2Config(
        position_image_size=518, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
    )
    model = ModelConfig(
        image_size=16, unet=base.unet, vae=base.vae, reference_encoder=reference, vgg=base.vgg, hint=base.hint
    )
    return ExperimentConfig(name="inspected", model=model)


@pytest.fixture(scope="module")
def model_folder(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    params = random_tree(DiffuseToChoose(config.model).shapes())
    return save_model_folder(tmp_path_factory.mktemp("models") / "model", config, params)


@pytest.fixture
def exported(model_folder: Path, tmp_path: Path) -> Path:
    return export_pipeline(open_checkpoint(model_folder), tmp_path / "exported", dtype="float16", with_vgg=True)


def test_exported_folder(exported: Path, config: ExperimentConfig, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(exported)
    assert found.kind == "exported folder" and "trust_remote_code=True" in found.details
    assert {part.network: part.layout for part in found.parts} == PARTS
    assert not any(part.problem for part in found.parts) and not found.missing
    shapes = DiffuseToChoose(config.model).shapes()
    counts = {part.network: part.parameters for part in found.parts}
    for name in ("unet", "fusion", "null_tokens"):
        assert counts[name] == sum(int(np.prod(leaf.shape)) for leaf in flatten_params({name: shapes[name]}).values())
    assert all(set(part.dtypes) == {"float16"} for part in found.parts)
    assert main(["inspect", str(exported)]) == 0
    said = capsys.readouterr().out
    assert "exported folder" in said and "experiment inspected" in said and "float16" in said
    assert said.count("complete") == len(PARTS) and "missing" not in said and "unknown" not in said


def test_exported_folder_that_lacks_something(exported: Path) -> None:
    (exported / "pipeline.py").unlink()
    (exported / "fusion" / "fusion.py").unlink()
    (exported / "reference_positions.safetensors").unlink()
    shutil.rmtree(exported / "hint_adapter")
    shutil.copy(
        exported / "null_tokens" / "diffusion_pytorch_model.safetensors",
        exported / "reference_projection" / "diffusion_pytorch_model.safetensors",
    )
    found = inspect(exported)
    missing = {"pipeline.py", "fusion/fusion.py", "reference_positions.safetensors"}
    assert set(found.missing) == missing | {"hint_adapter/config.json", "hint_adapter/hint_adapter.py"}
    problems = {part.network: part.problem for part in found.parts if part.problem}
    assert "no such file" in problems.pop("hint_adapter")
    assert problems.pop("reference_projection").startswith("2 missing (bias [")
    # The position table is that of 224 pixels, and the published one is gone.
    assert "embeddings.position_embeddings is" in problems.pop("image_encoder") and not problems
    assert "missing files: " in describe(found) and "pipeline.py" in describe(found)


def test_way_back_has_the_published_positions(model_folder: Path, exported: Path) -> None:
    (back,) = [tensor for tensor in open_exported(exported).networks["reference_encoder"] if tensor.name == POSITIONS]
    published = open_checkpoint(model_folder).networks["reference_encoder"].read(POSITIONS)
    assert back.shape == published.shape == (1, 37 * 37 + 1, 32)
    np.testing.assert_array_equal(back.read(), published.astype(np.float16))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda table: {POSITIONS: np.full_like(table, np.nan)}, "values are NaN or infinite"),
        (lambda table: {POSITIONS: table.astype(np.int32)}, "not floating point"),
        (lambda table: {POSITIONS: table, "more": table}, r"1 unexpected \(more"),
        (lambda table: {POSITIONS: table[:, 1:]}, "1 misshapen"),
        (lambda table: {"other": table}, "1 missing"),
    ],
    ids=["NaN", "integers", "one more", "misshapen", "missing"],
)
def test_the_published_positions_are_checked_as_every_tensor(
    spoil: Callable[[np.ndarray], dict[str, np.ndarray]],
    reason: str,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = exported / "reference_positions.safetensors"
    save_file(spoil(load_file(file)[POSITIONS]), file)
    assert main(["import", "--base", str(exported), "--output", str(exported.parent / "back")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(file) in said and re.search(reason, said), said
    assert not (exported.parent / "back").exists()
    problems = [part.problem for part in inspect(exported).parts if part.problem]
    assert len(problems) == ("NaN" not in reason)  # values are not read by an inspection


def test_exported_folder_without_its_configuration(exported: Path) -> None:
    (exported / "dtc_jax.json").unlink()
    found = inspect(exported)
    assert (found.kind, list(found.missing)) == ("exported folder", ["dtc_jax.json"])


@pytest.mark.parametrize("name", ["fusion", "hint_encoder", "image_encoder"])
def test_one_part_of_an_exported_folder(name: str, exported: Path) -> None:
    found = inspect(exported / name)
    (part,) = found.parts
    assert found.kind == "folder of a network" and (part.network, part.layout) == (name, PARTS[name])
    assert not part.problem


def test_model_folder(model_folder: Path, tmp_path: Path) -> None:
    found = inspect(model_folder)
    assert (found.kind, found.details) == ("model folder", "experiment inspected, 16 pixels")
    assert not any(part.problem for part in found.parts)
    shutil.copytree(model_folder, tmp_path / "copy")
    (tmp_path / "copy" / "vgg.safetensors").unlink()
    (part,) = [part for part in inspect(tmp_path / "copy").parts if part.problem]
    assert part.problem == "vgg.safetensors is missing, which training alone needs"


def test_model_folder_of_an_earlier_stage(config: ExperimentConfig, tmp_path: Path) -> None:
    stage = dataclasses.replace(config, name="ae", stage="autoencoder")
    params = random_tree(DiffuseToChoose(config.model).shapes())
    found = inspect(save_model_folder(tmp_path / "ae", stage, {"vae": params["vae"]}))
    assert [(part.network, part.problem) for part in found.parts] == [("vae", "")]
    assert "stage autoencoder" in found.details


def test_unfinished_run(config: ExperimentConfig, tmp_path: Path) -> None:
    params = random_tree(DiffuseToChoose(config.model).shapes())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(config_to_json(config))
    frozen = {name: params.pop(name) for name in ("vae", "reference_encoder")}
    save_model_folder(tmp_path / "frozen", config, frozen)
    assert "no checkpoint yet" in inspect(tmp_path).details
    del params["vgg"]
    trained = flatten_params(params)
    with ocp.CheckpointManager((tmp_path / "checkpoints").absolute()) as manager:
        manager.save(7, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": trained, "ema": trained})))
    assert not is_model_folder(tmp_path / "model")
    found = inspect(tmp_path)
    assert found.kind == "run folder" and found.details.startswith(
        "unfinished, newest checkpoint at step 7 (moving average);"
    )
    parts = {part.network: part for part in found.parts}
    assert parts["unet"].path == tmp_path / "checkpoints" / "7" and parts["vae"].path.parent == tmp_path / "frozen"
    assert parts["unet"].parameters == sum(array.size for array in flatten_params(params["unet"]).values())
    assert {name for name, part in parts.items() if part.problem} == {"vgg"}
