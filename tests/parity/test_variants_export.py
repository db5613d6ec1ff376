"""Export of the paper's variants: addition as in JAX, and a clear refusal of what has no pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig, FusionConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.models.unet import feature_channels
from dtc_jax.weights.command import main
from dtc_jax.weights.diffuse_to_choose import FUSION
from dtc_jax.weights.export_pytorch.networks import exported_networks
from dtc_jax.weights.export_pytorch.template import fusion as template
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.model_folder import flatten_params, save_model_folder
from dtc_jax.weights.tensors import WeightsError
from tests.models.trees import trained_tree
from tests.variants import at_test_size

ADDITION = dataclasses.replace(presets.test(), fusion=FusionConfig(kind="addition"))


def test_addition_is_the_same_in_pytorch() -> None:
    model = DiffuseToChoose(ADDITION)
    params = trained_tree({"fusion": model.shapes()["fusion"]})
    network = next(network for network in exported_networks(ADDITION) if network.network == "fusion")
    module = template.Fusion(**network.config)
    tensors = export_tensors(FUSION, flatten_params(params["fusion"]))
    module.load_state_dict({tensor.name: torch.from_numpy(tensor.read()) for tensor in tensors})
    random = np.random.default_rng(0)
    channels = feature_channels(ADDITION.unet)
    features = [random.standard_normal((2, 3, 4, width), dtype=np.float32) for width in channels]
    expected = model.modulations(params, features)
    assert expected is not None
    with torch.no_grad():
        found = module([torch.from_numpy(feature).permute(0, 3, 1, 2) for feature in features])
    for pair, torch_pair in zip(expected, found, strict=True):
        for part, torch_part in zip(pair, torch_pair, strict=True):
            np.testing.assert_allclose(torch_part.permute(0, 2, 3, 1), part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sd15_cross_attention", "model.fusion.kind = cross_attention"),
        ("sd15_latent", "model.hint.kind = latent"),
        ("pbe_clip_all", "CLIP as the reference encoder"),
    ],
)
def test_what_has_no_pipeline_is_refused(name: str, reason: str) -> None:
    with pytest.raises(WeightsError) as error:
        exported_networks(at_test_size(name).model)
    assert str(error.value).startswith(f"{reason}: has no PyTorch pipeline; ")


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = at_test_size("sd15_canny")
    params = DiffuseToChoose(config.model).init(jax.random.key(0))
    folder = save_model_folder(tmp_path / "model", config, params)
    assert main(["export", "--checkpoint", str(folder), "--output", str(tmp_path / "exported")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.hint.kind = canny: has no PyTorch pipeline; ") and error.count("\n") == 1
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
def test_addition_samples_the_same_in_pytorch(tmp_path: Path) -> None:
    config = ExperimentConfig(model=ADDITION)
    folder = save_model_folder(tmp_path / "model", config, trained_tree(DiffuseToChoose(ADDITION).shapes()))
    assert main(["verify", "--checkpoint", str(folder), "--num-inference-steps", "2"]) == 0
