"""A ready-to-train model folder from published parts, written by diffusers and transformers."""

from __future__ import annotations

import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import check_params, load_model_folder
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.command import other_than_default
from dtc_jax.weights.initialize_model import Parts, initialize_model
from dtc_jax.weights.model_folder import flatten_params
from dtc_jax.weights.single_files import export_single_file
from dtc_jax.weights.sources import Source, read_sources
from dtc_jax.weights.tensors import WeightsError
from tests.parity.published import write_controlnet, write_dinov2, write_stable_diffusion, write_vgg

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_stable_diffusion(folder / "sd")
    write_dinov2(folder / "dinov2")
    write_controlnet(folder / "controlnet")
    write_vgg(folder / "vgg19.pth")
    return folder


def all_parts(published: Path, **others: Path | None) -> Parts:
    named = {"reference_encoder": published / "dinov2", "vgg": published / "vgg19.pth", **others}
    return Parts(base=published / "sd", **named)


@pytest.fixture(scope="module")
def started(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Source]]:
    folder = tmp_path_factory.mktemp("models") / "start"
    lines: list[Source] = []
    initialize_model(all_parts(published), folder, image_size=32, seed=3, report=lines.append)
    return folder, lines


def test_complete_and_said(started: tuple[Path, list[Source]], published: Path) -> None:
    folder, lines = started
    config, params = load_model_folder(folder)
    check_params(params, DiffuseToChoose(config.model).shapes())
    assert config.model.unet.in_channels == 9 and config.model.reference_encoder.position_image_size == 518
    assert sorted(line.network for line in lines) == sorted(params) and lines == read_sources(folder)
    said = {line.network: str(line) for line in lines}
    assert "4 input channels, extended to 9 with zeros" in said["unet"] and str(published / "sd") in said["unet"]
    assert "a copy of the unet's encoder and middle" in said["hint_encoder"]
    assert "fresh" in said["fusion"] and "fresh" not in said["vgg"]
    licences = {line.network: line.licence for line in lines}
    assert licences["unet"] == licences["vae"] == licences["hint_encoder"] == "CreativeML OpenRAIL-M"
    assert licences["reference_encoder"] == "Apache-2.0" and licences["vgg"] == "BSD-3-Clause"
    assert licences["fusion"] == ""


def test_unet_is_the_published_one(started: tuple[Path, list[Source]], published: Path) -> None:
    params = load_model_folder(started[0])[1]
    state = safetensors.numpy.load_file(published / "sd" / UNET_FILE)
    kernel = params["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, :4], state["conv_in.weight"].transpose(2, 3, 1, 0))
    assert kernel.shape[2] == 9 and not kernel[:, :, 4:].any()
    hint, unet = flatten_params(params["hint_encoder"]), flatten_params(params["unet"])
    assert any(path.startswith("mid_block/") for path in hint)
    for path, array in hint.items():
        expected = unet[path][:, :, :4] if path == "conv_in/kernel" else unet[path]
        np.testing.assert_array_equal(array, expected, err_msg=path)


def test_fresh_parts_are_those_of_the_model(started: tuple[Path, list[Source]]) -> None:
    config, params = load_model_folder(started[0])
    fresh = DiffuseToChoose(config.model).init(jax.random.key(3))
    for network in ("hint_adapter", "fusion", "reference_projection", "null_tokens"):
        for path, array in flatten_params({network: fresh[network]}).items():
            np.testing.assert_array_equal(flatten_params({network: params[network]})[path], array, err_msg=path)
    assert not params["hint_adapter"]["convs_3"]["kernel"].any()
    assert params["hint_adapter"]["convs_0"]["kernel"].any()


def test_stable_diffusion_alone(published: Path, tmp_path: Path) -> None:
    """DINOv2-g and VGG-19 at full size would be drawn: what is going to be written is enough here."""
    from dtc_jax.weights.initialize_model import start_from

    start = start_from(Parts(base=published / "sd"), image_size=32)
    assert set(start.networks) == set(DiffuseToChoose(start.config.model).shapes())
    said = {source.network: source.origin for source in start.sources}
    assert "untrained" in said["reference_encoder"] and "untrained" in said["vgg"]
    assert start.config.model.reference_encoder.hidden_size == 1536


def test_hint_encoder_from_a_controlnet(published: Path, tmp_path: Path) -> None:
    parts = all_parts(published, hint_encoder=published / "controlnet")
    initialize_model(parts, tmp_path / "start", image_size=32)
    params = load_model_folder(tmp_path / "start", networks=("hint_encoder",))[1]
    state = safetensors.numpy.load_file(published / "controlnet" / "diffusion_pytorch_model.safetensors")
    kernel = params["hint_encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, state["conv_in.weight"].transpose(2, 3, 1, 0))
    assert {s.network: s.licence for s in read_sources(tmp_path / "start")}["hint_encoder"] == "OpenRAIL"


def test_paint_by_example(tmp_path: Path, published: Path) -> None:
    write_stable_diffusion(tmp_path / "pbe", 5, in_channels=9, pipeline="PaintByExamplePipeline")
    parts = Parts(base=tmp_path / "pbe", reference_encoder=published / "dinov2", vgg=published / "vgg19.pth")
    start = initialize_model(parts, tmp_path / "start", image_size=32)
    assert start.config.model.unet.mask_channel == "keep"
    assert "--model.unet.mask-channel keep" in other_than_default(start.config.model)
    stored = safetensors.numpy.load_file(tmp_path / "pbe" / UNET_FILE)["conv_in.weight"].transpose(2, 3, 1, 0)
    kernel = load_model_folder(tmp_path / "start", networks=("unet",))[1]["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 4], stored[:, :, 8])
    np.testing.assert_array_equal(kernel[:, :, 5:], stored[:, :, 4:8])


def test_single_files_are_the_same(
    started: tuple[Path, list[Source]], published: Path, real_weights: Path, tmp_path: Path
) -> None:
    """LDM's and Facebook's layouts as the base, from our own export; then with TAESD as the autoencoder."""
    checkpoint = open_checkpoint(started[0])
    ldm, dinov2 = tmp_path / "ldm.safetensors", tmp_path / "dinov2.safetensors"
    export_single_file(checkpoint, ldm, "ldm")
    export_single_file(checkpoint, dinov2, "dinov2")
    parts = Parts(base=ldm, reference_encoder=dinov2, vgg=published / "vgg19.pth")
    initialize_model(parts, tmp_path / "again", image_size=32, seed=3)
    (before_config, before), (after_config, after) = map(load_model_folder, (started[0], tmp_path / "again"))
    assert before_config.model.unet == after_config.model.unet and before_config.model.vae == after_config.model.vae
    before, after = flatten_params(before), flatten_params(after)
    assert list(before) == list(after)
    for path, array in before.items():
        assert array.tobytes() == after[path].tobytes(), path
    initialize_model(replace(parts, vae=real_weights), tmp_path / "taesd", image_size=64)
    config, params = load_model_folder(tmp_path / "taesd")
    check_params(params, DiffuseToChoose(config.model).shapes())
    assert config.model.vae.kind == "tiny"
    assert {source.network: source.licence for source in read_sources(tmp_path / "taesd")}["vae"] == "MIT"


# ----------------------------------------------------------------------------------------------------------- errors


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def with_tensors(path: Path, change: object) -> None:
    state = safetensors.numpy.load_file(path)
    change(state)  # type: ignore[operator]
    safetensors.numpy.save_file(state, path, metadata={"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / UNET_FILE
    path.write_bytes(path.read_bytes()[:-100])


def missing(folder: Path) -> None:
    with_tensors(folder / UNET_FILE, lambda state: state.pop("conv_out.bias"))


def misshapen(folder: Path) -> None:
    with_tensors(folder / UNET_FILE, lambda state: state.update({"conv_out.bias": np.zeros(5, np.float32)}))


def not_a_number(folder: Path) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    with_tensors(folder / name, lambda state: state["decoder.conv_out.bias"].fill(np.nan))


def code(folder: Path) -> None:
    (folder / UNET_FILE).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Evil()}, protocol=2))


def code_in_a_zip(folder: Path) -> None:
    (folder / UNET_FILE).unlink()
    torch.save({"conv_in.weight": Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")


def second_generation(folder: Path) -> None:
    def change(state: dict[str, np.ndarray]) -> None:
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        state[name] = np.zeros((32, 1024), np.float32)

    with_tensors(folder / UNET_FILE, change)


BROKEN = {
    "truncated": (cut, "cut short"),
    "missing": (missing, r"missing \(conv_out.bias \[4\]\)"),
    "misshapen": (misshapen, r"conv_out.bias is \[5\], expected \[4\]"),
    "nan": (not_a_number, r"decoder.conv_out.bias: .* NaN"),
    "code": (code, "refused|not a PyTorch file of weights"),
    "code in a zip": (code_in_a_zip, "refused"),
    "sd2": (second_generation, "Stable Diffusion 2.x; expected the U-Net of Stable Diffusion 1.x"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_leave_nothing(
    kind: str, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breakage, message = BROKEN[kind]
    shutil.copytree(published / "sd", tmp_path / "sd")
    breakage(tmp_path / "sd")
    parts = Parts(base=tmp_path / "sd", reference_encoder=published / "dinov2", vgg=published / "vgg19.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        initialize_model(parts, tmp_path / "start", image_size=32)
    assert str(tmp_path / "sd") in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]
    assert "code ran" not in capsys.readouterr().out


def test_existing_folder_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "mine").write_text("x")
    with pytest.raises(WeightsError, match="exists already"):
        initialize_model(all_parts(published), tmp_path / "start", image_size=32)
    assert [path.name for path in (tmp_path / "start").iterdir()] == ["mine"]


def test_full_disk_leaves_nothing(published: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as if the disk ended there
    try:
        with pytest.raises(WeightsError, match="cannot be written"):
            initialize_model(all_parts(published), tmp_path / "start", image_size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_parts_that_do_not_go_together(published: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds vae, expected unet"):
        initialize_model(Parts(base=published / "sd" / "vae"), tmp_path / "start")
    with pytest.raises(WeightsError, match="holds no autoencoder"):
        initialize_model(Parts(base=published / "sd" / "unet"), tmp_path / "start")
    with pytest.raises(WeightsError, match="holds dinov2, expected vgg"):
        initialize_model(all_parts(published, vgg=published / "dinov2"), tmp_path / "start")
