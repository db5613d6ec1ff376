"""What a file is: the architectures that do not fit are named, and inspection says what is wrong with the others."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import autoencoder_kl, unet
from dtc_jax.weights.detect import detect, detect_networks
from dtc_jax.weights.inspect import describe, inspect
from dtc_jax.weights.mapping import export_tensors
from dtc_jax.weights.model_folder import save_model_folder
from dtc_jax.weights.tensors import ArraySource, LazyTensor, WeightsError, write_tensors
from tests.models.trees import random_tree

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

LEVELS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 2}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def second() -> Any:
    """stabilityai/stable-diffusion-2-1's U-Net at its width of attention."""
    return diffusers.UNet2DConditionModel(**LEVELS, **BLOCKS, cross_attention_dim=1024, use_linear_projection=True)


def xl() -> Any:
    return diffusers.UNet2DConditionModel(
        **LEVELS,
        **BLOCKS,
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16,
    )


def third() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=8, pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip


def llama() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **sizes))


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))


def bert() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes))


def registers() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(image_size=28, **sizes))


def source_of(names: dict[str, tuple[int, ...]], path: str = "file.safetensors") -> ArraySource:
    return ArraySource({name: np.broadcast_to(np.float16(0), shape) for name, shape in names.items()}, Path(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (second, "Stable Diffusion 2.x; expected the U-Net of Stable Diffusion 1.x"),
        (xl, "Stable Diffusion XL; expected the U-Net of Stable Diffusion 1.x"),
        (third, "Stable Diffusion 3; expected"),
        (llama, "a language model; expected"),
        (gpt2, "a language model; expected"),
        (bert, "of no network that is known: "),
        (registers, "DINOv2 with registers"),
    ],
)
def test_modules_of_another_architecture(make: Callable[[], Any], what: str) -> None:
    with torch.device("meta"):
        names = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    with pytest.raises(WeightsError) as error:
        detect_networks(source_of(names))
    assert what in str(error.value) and str(error.value).startswith("file.safetensors: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "what"),
    [("xl_base", "XL"), ("xl_refiner", "XL"), ("sd3", "Stable Diffusion 3"), ("flux", "Flux"), ("v2", "2.x")],
)
def test_single_files_by_the_names_that_diffusers_looks_for(kind: str, what: str) -> None:
    names = single_file_utils.CHECKPOINT_KEY_NAMES[kind]
    for name in [names] if isinstance(names, str) else names:
        with pytest.raises(WeightsError, match=f"file.safetensors: .*{what}"):
            detect(source_of({name: (320, 1024)}))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": (4, 8)}, "a LoRA"),
        ({"features.0.weight": (64, 3, 3, 3), "features.1.running_mean": (64,)}, "a VGG with batch norm"),
        ({"conv_in/kernel": (3, 3, 9, 320), "conv_in/bias": (320,)}, "one network of a model folder"),
        ({}, "of no network that is known: 0 tensors"),
    ],
)
def test_other_things_that_people_have(names: dict[str, tuple[int, ...]], what: str) -> None:
    with pytest.raises(WeightsError, match=what):
        detect(source_of(names))


# -------------------------------------------------------------------------------------------------------- inspection

MODEL = presets.test()


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_tree(DiffuseToChoose(MODEL).shapes())


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return result


def write(folder: Path, name: str, tensors: list[LazyTensor], prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, name, [LazyTensor(prefix + t.name, t.shape, t.dtype, t.read) for t in tensors])


def test_inspection_of_a_folder_of_several_networks(params: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "vae", "diffusion_pytorch_model", export_tensors(autoencoder_kl.DIFFUSERS, flat(params["vae"])))
    (tmp_path / "vae" / "config.json").write_text(
        diffusers.AutoencoderKL.from_config(autoencoder_kl.to_diffusers_config(MODEL.vae)).to_json_string()
    )
    unet_tensors = export_tensors(unet.DIFFUSERS, flat(params["unet"]))
    write(tmp_path / "unet", "diffusion_pytorch_model", unet_tensors)
    write(tmp_path / "safety_checker", "model", [LazyTensor("strange", (1,), np.dtype("f4"), lambda: np.ones(1, "f4"))])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    found = inspect(tmp_path)
    assert found.kind == "folder of several networks"
    parts = {part.path.parent.name: part for part in found.parts}
    assert set(parts) == {"vae", "unet", "safety_checker"}
    assert (parts["vae"].network, parts["vae"].problem) == ("vae", "")
    assert parts["vae"].parameters == sum(array.size for array in flat(params["vae"]).values())
    # Without its config.json the number of groups can only be assumed, and is wrong for so small a network.
    assert "unet.norm_num_groups" in parts["unet"].problem
    assert "strange [1]" in parts["safety_checker"].problem


def test_inspection_of_a_file_names_what_is_wrong(params: dict[str, Any], tmp_path: Path) -> None:
    tensors = export_tensors(autoencoder_kl.DIFFUSERS, flat(params["vae"]))
    (tmp_path / "config.json").write_text(
        diffusers.AutoencoderKL.from_config(autoencoder_kl.to_diffusers_config(MODEL.vae)).to_json_string()
    )
    spoiled = [tensor for tensor in tensors if tensor.name != "encoder.conv_out.bias"]
    spoiled.append(LazyTensor("something.else", (2,), np.dtype("f2"), lambda: np.ones(2, "f2")))
    write(tmp_path, "model", spoiled)
    found = inspect(tmp_path / "model.safetensors")
    (part,) = found.parts
    assert found.kind == "file" and part.layout == "diffusers' AutoencoderKL"
    assert part.dtypes == {"float32": len(tensors) - 1, "float16": 1}
    assert part.problem == "1 missing (encoder.conv_out.bias [8]); 1 unexpected (something.else [2])"
    text = describe(found)
    assert part.problem in text and f"{len(tensors)} tensors" in text and "1 float16" in text


def test_inspection_of_model_and_run_folders(params: dict[str, Any], tmp_path: Path) -> None:
    config = ExperimentConfig(name="inspected", model=MODEL)
    save_model_folder(tmp_path / "run" / "model", config, params)
    found = inspect(tmp_path / "run" / "model")
    assert found.kind == "model folder" and {part.network for part in found.parts} == set(params)
    assert not any(part.problem for part in found.parts)
    assert "complete" in describe(found)
    (tmp_path / "run" / "checkpoints").mkdir()
    assert inspect(tmp_path / "run").kind == "run folder"
    assert {part.network for part in inspect(tmp_path / "run").parts} == set(params)
    model = tmp_path / "run" / "model"
    (model / "fusion.safetensors").unlink()
    shutil.copy(model / "unet.safetensors", model / "hint_encoder.safetensors")
    problems = {part.network: part.problem for part in inspect(model).parts if part.problem}
    assert set(problems) == {"fusion", "hint_encoder"}
    assert "fusion.safetensors is missing" in problems["fusion"] and "unexpected" in problems["hint_encoder"]


def test_inspection_of_a_single_file(tmp_path: Path) -> None:
    sizes = {"block_out_channels": (32, 64), "norm_num_groups": 32}
    unet_config = type(MODEL.unet)(**sizes, in_channels=4, attention_levels=(True, False), cross_attention_dim=8)
    vae_config = type(MODEL.vae)(**sizes)
    plain, vae = unet.shapes(unet_config), autoencoder_kl.shapes(vae_config)
    unet_tensors = export_tensors(unet.LDM, zeros(plain))
    tensors = [LazyTensor(unet.LDM_PREFIX + t.name, t.shape, t.dtype, t.read) for t in unet_tensors]
    tensors += [LazyTensor(unet.ldm_ema_name(t.name), t.shape, t.dtype, t.read) for t in unet_tensors]
    tensors += [
        LazyTensor(autoencoder_kl.LDM_PREFIX + t.name, t.shape, t.dtype, t.read)
        for t in export_tensors(autoencoder_kl.LDM, zeros(vae))
    ]
    tensors += [LazyTensor("betas", (1000,), np.dtype("f4"), lambda: np.zeros(1000, "f4"))]
    write(tmp_path, "sd", tensors)
    found = inspect(tmp_path / "sd.safetensors")
    assert [part.network for part in found.parts] == ["unet", "unet_ema", "vae"]
    assert not any(part.problem for part in found.parts) and found.others == {"betas": 1}
    assert "1 tensors of no network that is known: betas* (1)" in describe(found)
    networks = detect_networks(source_of({tensor.name: tensor.shape for tensor in tensors}))
    assert [network.config for network in networks] == [unet_config, unet_config, vae_config]
    source = source_of({tensor.name: tensor.shape for tensor in tensors})
    assert detect(source, "vae").network == "vae"
    with pytest.raises(WeightsError, match=r"holds several networks \(unet, unet_ema, vae\); name one"):
        detect(source)
    with pytest.raises(WeightsError, match="holds unet, unet_ema, vae, expected vgg"):
        detect(source, "vgg")


def test_paint_by_example_in_a_single_file() -> None:
    config = type(MODEL.unet)(
        block_out_channels=(32, 64), in_channels=9, attention_levels=(True, False), cross_attention_dim=8
    )
    names = {
        unet.LDM_PREFIX + t.name: t.shape for t in export_tensors(unet.PAINT_BY_EXAMPLE_LDM, zeros(unet.shapes(config)))
    }
    plain = detect(source_of(names))
    assert (plain.layout, plain.config.mask_channel) == (unet.LDM, "fill")
    own = {"learnable_vector": (1, 1, 768), "proj_out.weight": (768, 1024), "proj_out.bias": (768,)}
    found = detect(source_of({**names, **own}), "unet")
    assert found.layout is unet.PAINT_BY_EXAMPLE_LDM and "another order of the input channels" in found.reason
    assert found.config == dataclasses.replace(config, mask_channel="keep")


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
