"""The command line of conversion, without PyTorch: errors of use, import of an export, single files, types."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import load_model_folder, save_model_folder
from dtc_jax.weights.command import main, other_than_default
from dtc_jax.weights.hub import choose_files, locate
from dtc_jax.weights.model_folder import flatten_params
from dtc_jax.weights.tensors import WeightsError, open_tensors


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = presets.test()
    params = DiffuseToChoose(model).init(jax.random.key(0))
    return save_model_folder(tmp_path_factory.mktemp("models") / "test", ExperimentConfig(model=model), params)


def error_of(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line of an error of use."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def test_errors_of_use(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    assert "unknown command 'convert'" in error_of(capsys, "convert")
    assert "--base" in error_of(capsys, "import", "--output", tmp_path / "x")
    assert "no such file or folder" in error_of(capsys, "import", "--base", tmp_path / "no", "--output", tmp_path / "x")
    assert "exists already" in error_of(capsys, "import", "--base", model_folder, "--output", tmp_path)
    assert "exists already" in error_of(capsys, "export", "--checkpoint", model_folder, "--output", tmp_path)
    assert "no such folder" in error_of(capsys, "export", "--checkpoint", tmp_path / "no", "--output", tmp_path / "x")
    params = ("export", "--checkpoint", model_folder, "--output", tmp_path / "x", "--weights", "params")
    assert "needs a run folder" in error_of(capsys, *params)
    assert "--max-shard-gb" in error_of(capsys, "export", "--output", tmp_path / "x", "--max-shard-gb", "0")
    export = ("export", "--output", tmp_path / "x")
    assert "NUL" in error_of(capsys, "export", "--output", "a\0b")
    assert "cannot be made" in error_of(capsys, "export", "--output", tmp_path / ("n" * 300))
    assert "too long" in error_of(capsys, *export, "--started-from", tmp_path / ("n" * 300))
    imported = ("import", "--base", model_folder, "--output", tmp_path / "x")
    assert "--seed" in error_of(capsys, *imported, "--seed", str(2**70))
    assert "--seed" in error_of(capsys, "verify", "--seed", "-1")
    assert "such" in error_of(capsys, "verify", "--checkpoint", model_folder, "--exported", tmp_path / "no")
    assert "no such file or folder" in error_of(capsys, "inspect", tmp_path / "no")
    single = ("export", "--checkpoint", model_folder, "--format", "ldm", "--output", tmp_path / "x.ckpt")
    assert ".safetensors" in error_of(capsys, *single)
    started = ("export", "--checkpoint", model_folder, "--output", tmp_path / "x", "--started-from", tmp_path)
    assert "sources.json" in error_of(capsys, *started)
    assert list(tmp_path.iterdir()) == []


def test_damaged_model_folder(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    config, params = load_model_folder(model_folder)
    del params["unet"]["conv_out"]["bias"]
    broken = save_model_folder(tmp_path / "broken", config, params)
    message = error_of(capsys, "export", "--checkpoint", broken, "--output", tmp_path / "x")
    assert "unet.safetensors" in message and "missing (conv_out/bias [4])" in message
    del params["fusion"]
    incomplete = save_model_folder(tmp_path / "incomplete", config, params)
    assert "no fusion" in error_of(capsys, "export", "--checkpoint", incomplete, "--output", tmp_path / "x")


def test_export_and_way_back(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    exported = ("export", "--checkpoint", str(model_folder), "--output", str(tmp_path / "exported"), "--with-vgg")
    assert main(exported) == 0
    assert main(("import", "--base", str(tmp_path / "exported"), "--output", str(tmp_path / "back"))) == 0
    said = capsys.readouterr().out
    assert f"unet: {tmp_path / 'exported'}" in said and "train.py sd15" in said
    (before_config, before), (after_config, after) = map(load_model_folder, (model_folder, tmp_path / "back"))
    assert before_config == after_config
    before, after = flatten_params(before), flatten_params(after)
    assert list(before) == list(after)
    for path, array in before.items():
        assert array.dtype == after[path].dtype and array.tobytes() == after[path].tobytes(), path
    assert main(("inspect", str(tmp_path / "back"))) == 0
    assert "missing" not in capsys.readouterr().out
    assert main(("inspect", str(tmp_path / "exported" / "unet"))) == 0
    assert "diffusers' UNet2DConditionModel" in capsys.readouterr().out


def test_single_files(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    params = load_model_folder(model_folder)[1]
    for kind in ("ldm", "dinov2"):
        output = str(tmp_path / f"{kind}.safetensors")
        assert main(("export", "--checkpoint", str(model_folder), "--format", kind, "--output", output)) == 0
    ldm, dinov2 = open_tensors(tmp_path / "ldm.safetensors"), open_tensors(tmp_path / "dinov2.safetensors")
    prefixes = {name.split(".")[0] for name in ldm.keys()}  # noqa: SIM118
    assert prefixes == {"model", "first_stage_model"}
    kernel = params["unet"]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(ldm.read("model.diffusion_model.input_blocks.0.0.weight"), kernel)
    kernel = params["vae"]["encoder"]["conv_in"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(ldm.read("first_stage_model.encoder.conv_in.weight"), kernel)
    query = params["reference_encoder"]["encoder"]["layer_0"]["attention"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(dinov2.read("blocks.0.attn.qkv.weight")[:16], query.T)


def test_single_file_cannot_say_that_1_means_keep(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    config, params = load_model_folder(model_folder)
    unet = dataclasses.replace(config.model.unet, mask_channel="keep")
    keep = dataclasses.replace(config, model=dataclasses.replace(config.model, unet=unet))
    folder = save_model_folder(tmp_path / "keep", keep, params)
    single = ("export", "--checkpoint", folder, "--format", "ldm", "--output", tmp_path / "x.safetensors")
    assert "1 = keep" in error_of(capsys, *single)
    assert not (tmp_path / "x.safetensors").exists()
    assert main(("export", "--checkpoint", str(folder), "--output", str(tmp_path / "exported"))) == 0
    assert json.loads((tmp_path / "exported" / "model_index.json").read_text())["mask_channel"] == "keep"


def test_half_types(model_folder: Path, tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        output = str(tmp_path / dtype)
        assert main(("export", "--checkpoint", str(model_folder), "--output", output, "--dtype", dtype)) == 0
        source = open_tensors(tmp_path / dtype / "unet")
        assert {str(source.dtype(name)) for name in source.keys()} == {dtype}  # noqa: SIM118


def test_value_beyond_the_type(capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path) -> None:
    config, params = load_model_folder(model_folder)
    params["vae"]["quant_conv"]["bias"] = np.full_like(params["vae"]["quant_conv"]["bias"], 1e6)
    folder = save_model_folder(tmp_path / "large", config, params)
    flags = ("export", "--checkpoint", folder, "--output", tmp_path / "x", "--dtype", "float16")
    assert "quant_conv" in error_of(capsys, *flags)
    assert not (tmp_path / "x").exists()


def test_flags_of_another_model() -> None:
    flags = other_than_default(presets.tiny())
    assert "--model.image-size 64" in flags and "--model.unet.block-out-channels 64 96 128" in flags
    assert other_than_default(presets.sd15()) == []


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path
    monkeypatch.setattr("dtc_jax.weights.hub._reach", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_: ["unet/a.safetensors", "other.txt"])
    asked = {}

    def download(name: str, **arguments: object) -> str:
        asked.update(name=name, **arguments)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("owner/name", ("unet",)) == tmp_path
    assert asked == {"name": "owner/name", "allow_patterns": ["other.txt", "unet/a.safetensors"]}

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"not to be had from the hub .*no route to host"):
        locate("owner/name")


def test_files_chosen_on_the_hub() -> None:
    files = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        *(f"unet/diffusion_pytorch_model{part}" for part in (".safetensors", ".fp16.safetensors", ".bin")),
        "unet/config.json",
        "unet/flax_model.msgpack",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.safetensors",
    ]
    plain = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files(files, ("unet", "vae"), None) == [*plain, "vae/diffusion_pytorch_model.bin"]
    half = choose_files(files, ("unet",), "fp16")
    assert half[-1] == "unet/diffusion_pytorch_model.fp16.safetensors" and len(half) == 3
    single = ["v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md"]
    assert choose_files(single, ("unet", "vae"), None) == ["README.md", "v1-5-pruned.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert sorted(choose_files(shards, ("",), None)) == sorted(shards)
