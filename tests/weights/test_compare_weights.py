"""Every tensor of an export is the checkpoint's: what outputs do not show is seen, and damage is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dtc_jax import presets
from dtc_jax.config import DINOv2Config, ExperimentConfig, ModelConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.checkpoint_source import Checkpoint, open_checkpoint
from dtc_jax.weights.command import main
from dtc_jax.weights.compare_weights import compare_weights
from dtc_jax.weights.export_pytorch import export_pipeline
from dtc_jax.weights.tensors import WeightsError
from tests.models.trees import random_tree

Arrays = dict[str, np.ndarray]
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    base = presets.test()
    reference = DINOv2Config(
        position_image_size=518, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
    )
    model = ModelConfig(
        image_size=16, unet=base.unet, vae=base.vae, reference_encoder=reference, vgg=base.vgg, hint=base.hint
    )
    params = random_tree(DiffuseToChoose(model).shapes())
    return open_checkpoint(save_model_folder(tmp_path_factory.mktemp("m") / "m", ExperimentConfig(model=model), params))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pipeline(checkpoint, tmp_path_factory.mktemp("e") / "e", with_vgg=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_export_is_the_checkpoint_rounded(dtype: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = compare_weights(checkpoint, export_pipeline(checkpoint, tmp_path / "e", dtype=dtype, with_vgg=True))
    networks = {*checkpoint.networks, "published positions"}
    assert {row.network for row in rows} == networks
    assert all(row.error == 0 and not row.tensor for row in rows)


@pytest.mark.parametrize(
    ("file", "tensor", "row"),
    [
        # An adapter ends in zeros at first: whatever comes before, its output is the same.
        (f"hint_adapter/{FILE}", "convs.0.weight", "hint_adapter"),
        ("vgg/model.safetensors", "features.2.bias", "vgg"),
        ("reference_positions.safetensors", "embeddings/position_embeddings", "published positions"),
        ("image_encoder/model.safetensors", "layernorm.bias", "reference_encoder"),
    ],
)
@pytest.mark.parametrize("change", [1e-4, np.nan])
def test_one_number_that_is_off_is_seen(
    file: str, tensor: str, row: str, change: float, checkpoint: Checkpoint, exported: Path, tmp_path: Path
) -> None:
    arrays = load_file(exported / file)
    arrays[tensor].reshape(-1)[0] += change
    shutil.copytree(exported, tmp_path / "e")
    save_file(arrays, tmp_path / "e" / file)
    failed = [found for found in compare_weights(checkpoint, tmp_path / "e") if not found.error <= found.tolerance]
    assert [(found.network, found.tensor) for found in failed] == [(row, tensor)]


DAMAGE: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "missing": (lambda a: {k: v for k, v in a.items() if k != "conv_out.bias"}, r"1 missing \(conv_out.bias \[4\]\)"),
    "unexpected": (lambda a: {**a, "more": np.zeros(1, np.float32)}, r"1 unexpected \(more \[1\]\)"),
    "misshapen": (lambda a: {**a, "conv_out.bias": np.zeros(5, np.float32)}, r"conv_out.bias is \[5\], expected \[4\]"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_tensors_are_named(kind: str, checkpoint: Checkpoint, exported: Path, tmp_path: Path) -> None:
    change, reason = DAMAGE[kind]
    shutil.copytree(exported, tmp_path / "e")
    save_file(change(load_file(exported / "unet" / FILE)), tmp_path / "e" / "unet" / FILE)
    with pytest.raises(WeightsError, match=rf"unet/{FILE}: not an export of this model: .*{reason}"):
        compare_weights(checkpoint, tmp_path / "e")


@pytest.mark.parametrize("name", ["pipeline.py", "fusion/fusion.py", "unet/config.json", f"fusion/{FILE}"])
def test_files_that_are_not_there_are_an_error_of_use(
    name: str, checkpoint: Checkpoint, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "e")
    (tmp_path / "e" / name).unlink()
    assert main(["verify", "--checkpoint", str(checkpoint.path), "--exported", str(tmp_path / "e")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and Path(name).parts[0] in said


def test_a_file_that_was_cut_short_is_an_error_of_use(checkpoint: Checkpoint, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "e")
    path = tmp_path / "e" / "image_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"image_encoder/model.safetensors: cut short"):
        compare_weights(checkpoint, tmp_path / "e")
