"""An exported folder in PyTorch: loaded by diffusers and transformers, and sampled without anything of ours."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import transformers

from dtc_jax import presets
from dtc_jax.config import (
    AutoencoderKLConfig,
    DiffusionConfig,
    DINOv2Config,
    ExperimentConfig,
    HintConfig,
    ModelConfig,
    PatchAutoencoderConfig,
    SamplingConfig,
    UNetConfig,
    VGGConfig,
)
from dtc_jax.diffusion import per_sample_normal
from dtc_jax.inference.generate import image_keys
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.export_pytorch import export_pipeline, open_exported
from dtc_jax.weights.initialize_model import Parts, initialize_model
from dtc_jax.weights.sources import Source
from dtc_jax.weights.tensors import WeightsError
from dtc_jax.weights.verify import SAMPLE, table, verify
from tests.models.trees import trained_tree
from tests.parity.alone import sample_alone

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def small_model(**others: Any) -> ModelConfig:
    """All parts as at full size (AutoencoderKL, SwiGLU, positions of 518 pixels), a hundredth as wide."""
    sizes: dict[str, Any] = {
        "image_size": 32,
        "unet": UNetConfig(
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_levels=(True, False),
            num_attention_heads=2,
            cross_attention_dim=16,
            norm_num_groups=8,
        ),
        "vae": AutoencoderKLConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4),
        "reference_encoder": DINOv2Config(
            position_image_size=518, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
        ),
        "vgg": VGGConfig(block_channels=(4, 4, 8, 8, 8), convolutions_per_block=(2, 2, 2, 2, 2)),
        "hint": HintConfig(adapter_channels=(4, 4, 8)),
    }
    return ModelConfig(**{**sizes, **others})


def write_model(folder: Path, model: ModelConfig, **settings: Any) -> Path:
    """A model folder; every tensor random, so that hint and reference both have an effect."""
    # Drawn in numpy: the model's own initialisation would be compiled shape by shape.
    params = trained_tree(DiffuseToChoose(model).shapes())
    sampling = settings.pop("sampling", SamplingConfig(num_inference_steps=5, guidance_scale=3.0))
    return save_model_folder(folder, ExperimentConfig(name="small", model=model, sampling=sampling, **settings), params)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "small", small_model())


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "small"
    return export_pipeline(open_checkpoint(model_folder), target, with_vgg=True)


@pytest.fixture(autouse=True)
def _modules_outside_the_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path_factory.getbasetemp() / "modules")
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", folder)


def assert_all_pass(checkpoint: Path, exported: Path) -> None:
    rows = verify(open_checkpoint(checkpoint), exported)
    print(table(rows))
    assert SAMPLE in [row.name for row in rows]
    assert all(row.passed for row in rows), table(rows)


def test_both_sides_agree(model_folder: Path, exported: Path) -> None:
    assert_all_pass(model_folder, exported)


def test_verify_sees_what_is_wrong(model_folder: Path, exported: Path) -> None:
    """One tensor that is 1% off, then a mask of the wrong polarity, which the whole sample alone shows."""
    checkpoint = open_checkpoint(model_folder)
    wrong = checkpoint.networks["fusion"].read("skips_0/gamma/kernel") * 1.01
    checkpoint.networks["fusion"].read = lambda name, read=checkpoint.networks["fusion"].read: (  # type: ignore[method-assign]
        wrong if name == "skips_0/gamma/kernel" else read(name)
    )
    rows = {row.name: row for row in verify(checkpoint, exported, with_sample=False)}
    assert not rows["fusion"].passed and rows["unet"].passed
    index = json.loads((exported / "model_index.json").read_text())
    (exported / "model_index.json").write_text(json.dumps({**index, "mask_channel": "keep"}))
    try:
        rows = {row.name: row for row in verify(open_checkpoint(model_folder), exported)}
    finally:
        (exported / "model_index.json").write_text(json.dumps(index))
    assert not rows[SAMPLE].passed and rows["unet"].passed


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_small_networks_are_within_tolerance_whatever_is_drawn(seed: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", presets.test())
    exported = export_pipeline(open_checkpoint(folder), tmp_path / "exported")
    rows = verify(open_checkpoint(folder), exported, seed=seed, with_sample=False)
    assert all(row.passed for row in rows), table(rows)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("pipeline.py", "def (", "diffusers cannot load it"),
        ("pipeline.py", "import a_module_that_nobody_has", "diffusers cannot load it"),
        ("unet/config.json", "{", "diffusers cannot load it"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_one_line(
    file: str, text: str, reason: str, model_folder: Path, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "broken")
    (tmp_path / "broken" / file).write_text(text)
    with pytest.raises(WeightsError, match=rf"broken: {reason} \(") as error:
        verify(open_checkpoint(model_folder), tmp_path / "broken")
    assert "\n" not in str(error.value)


VARIANTS = {
    "patches, tokens dropped alone, v": (
        small_model(
            vae=PatchAutoencoderConfig(latent_channels=4, patch_size=2, hidden_channels=8),
            hint=HintConfig(adapter_channels=(4, 4, 8), time="fixed", fit="stretch", region="bounding_box"),
        ),
        {
            "diffusion": DiffusionConfig(prediction_type="v_prediction", beta_schedule="cosine"),
            "sampling": SamplingConfig(
                unconditional="both",
                timestep_spacing="trailing",
                guidance_interval=(0.5, 5.0),
                guidance_rescale=0.7,
                box_outline="reference",
            ),
        },
    ),
    "no hint, mask 1 = keep, DPM-Solver++": (
        small_model(
            hint=HintConfig(kind="none"),
            unet=UNetConfig(
                block_out_channels=(16, 32),
                layers_per_block=1,
                attention_levels=(True, False),
                num_attention_heads=2,
                cross_attention_dim=16,
                norm_num_groups=8,
                mask_channel="keep",
            ),
        ),
        {"sampling": SamplingConfig(solver="dpmsolver++", guidance_interval=(0.7, 4.0))},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    model, settings = VARIANTS[name]
    folder = write_model(tmp_path / "model", model, **settings)
    exported = export_pipeline(open_checkpoint(folder), tmp_path / "exported")
    assert_all_pass(folder, exported)
    own = settings.get("sampling", SamplingConfig()).box_outline
    assert json.loads((exported / "model_index.json").read_text())["box_outline"] == own


def test_parts_load_by_themselves(exported: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(exported, subfolder="unet")
    vae = diffusers.AutoencoderKL.from_pretrained(exported, subfolder="vae")
    encoder, loading = transformers.Dinov2Model.from_pretrained(
        exported, subfolder="image_encoder", output_loading_info=True
    )
    assert unet.config.in_channels == 9 and vae.config.scaling_factor == 0.18215
    assert encoder.config.image_size == 224
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_way_back_is_exact(model_folder: Path, exported: Path, tmp_path: Path) -> None:
    before = open_checkpoint(model_folder)
    initialize_model(Parts(base=exported), tmp_path / "back")
    after = open_checkpoint(tmp_path / "back")
    assert after.config == before.config and set(after.networks) == set(before.networks)
    for name, source in before.networks.items():
        again = after.networks[name]
        assert sorted(source.keys()) == sorted(again.keys())
        for tensor in source.keys():  # noqa: SIM118
            assert source.read(tensor).tobytes() == again.read(tensor).tobytes(), f"{name}/{tensor}"
    export_pipeline(after, tmp_path / "again", with_vgg=True)
    files = sorted(path.relative_to(exported) for path in exported.rglob("*.safetensors"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (exported / file).read_bytes(), file


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_and_shards(dtype: str, model_folder: Path, tmp_path: Path) -> None:
    target = export_pipeline(
        open_checkpoint(model_folder), tmp_path / "half", dtype=jax.numpy.dtype(dtype), max_shard_bytes=100_000
    )
    assert (target / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert not (target / "unet" / "diffusion_pytorch_model.safetensors").exists()
    exported = open_exported(target)
    assert {str(tensor.dtype) for tensors in exported.networks.values() for tensor in tensors} == {dtype}
    rows = verify(open_checkpoint(model_folder), target, tolerance=0.02, with_sample=False)
    outputs = [row for row in rows if not row.name.endswith("weights")]
    assert all(1e-6 < row.relative_error < 0.02 for row in outputs), table(rows)
    # The tensors themselves are the checkpoint's, rounded, and nothing else.
    assert len(rows) > len(outputs) and all(row.relative_error == 0 for row in rows if row not in outputs), table(rows)


def test_card_says_the_licences(model_folder: Path, tmp_path: Path) -> None:
    sources = [
        Source(network="unet", origin="sd15.safetensors", layout="LDM", licence="CreativeML OpenRAIL-M"),
        Source(network="reference_encoder", origin="dinov2_vitg14.pth", licence="Apache-2.0"),
        Source(network="fusion", origin="fresh"),
    ]
    target = export_pipeline(open_checkpoint(model_folder), tmp_path / "exported", sources=sources)
    card = (target / "README.md").read_text()
    assert "license: creativeml-openrail-m" in card and "sd15.safetensors" in card
    assert "- unet: [CreativeML OpenRAIL-M](" in card and "- reference_encoder: [Apache-2.0](" in card
    assert "trust_remote_code=True" in card and "{" not in card.split("## Parts")[1]
    assert "not recorded" not in card and "usually published in the layouts" in card


def test_card_of_published_sizes_assumes_their_licences() -> None:
    from dtc_jax.weights.export_pytorch.card import _licences, licence_text

    text = licence_text(_licences(ModelConfig(), [], ["unet", "reference_encoder"]), None, known=False)
    assert "CreativeML OpenRAIL-M" in text and "Apache-2.0" in text and "not recorded" in text
    assert "BSD" not in text and "nothing was trained here" in text


def test_existing_folder_and_bad_numbers_are_refused(model_folder: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="exists already"):
        export_pipeline(open_checkpoint(model_folder), exported)
    checkpoint = open_checkpoint(model_folder)
    source = checkpoint.networks["vae"]
    original = source.read
    source.read = lambda name: np.full_like(original(name), np.nan)  # type: ignore[method-assign]
    with pytest.raises(WeightsError, match="NaN"):
        export_pipeline(checkpoint, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_samples_real_files_without_us(model_folder: Path, exported: Path, real_inputs: Path, tmp_path: Path) -> None:
    """Equal to our own sampler, from files to pixels."""
    files = [real_inputs / "furniture-02" / f"{name}.png" for name in ("scene", "mask", "reference")]
    pipeline = Pipeline.load(model_folder)
    case = pipeline.prepare(*files)
    window = next(iter(pipeline.generate([(case, 0, 0)])))
    noise_key = jax.vmap(lambda key: jax.random.split(key)[0])(image_keys(0, 1))
    size = pipeline.config.model.latent_size
    np.save(tmp_path / "noise.npy", np.asarray(per_sample_normal(noise_key, (size, size, 4))))
    sample_alone(exported, tmp_path / "out.npz", files, noise=tmp_path / "noise.npy")
    with np.load(tmp_path / "out.npz") as theirs:
        error = np.linalg.norm(theirs["window"] - window) / np.linalg.norm(window)
        print(f"relative error of the window: {error:.2e}")
        assert error < 1e-3
        assert theirs["seeded"].tobytes() != theirs["image"].tobytes()
        difference = np.abs(theirs["image"].astype(int) - case.put_back(window))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
