"""DreamPaint exported: diffusers' own inpainting pipeline loads it, reads the prompt and predicts as we do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights import save_model_folder
from dtc_jax.weights.command import main
from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from dtc_jax.weights.prompts import encode_prompts, find_tokenizer
from tests.dreampaint import at_test_size
from tests.models.trees import trained_tree
from tests.parity.naming import relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

TOLERANCE = 1e-5
CONFIG = at_test_size(levels=2)
MODEL = DiffuseToChoose(CONFIG.model)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """As after training; the prompts are the text encoder's own."""
    values = trained_tree({name: tree for name, tree in MODEL.shapes().items() if name != "vgg"})
    tokenizer = find_tokenizer(CONFIG.model, [])
    return {**values, **encode_prompts(CONFIG.model, CONFIG.data, values["reference_encoder"], tokenizer)}


@pytest.fixture(scope="module")
def exported(params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_model_folder(folder / "model", CONFIG, params)
    assert main(["export", "--checkpoint", str(folder / "model"), "--output", str(folder / "exported")]) == 0
    return folder / "exported"


def test_diffusers_reads_and_predicts_the_same(exported: Path, params: dict[str, Any]) -> None:
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(str(exported))
    for prompt, tokens in (
        (CONFIG.data.prompt, params["prompts"]["product"]),
        (CONFIG.data.class_prompt, params["prompts"]["class"]),
        ("", params["null_tokens"]["embedding"]),
    ):
        with torch.no_grad():
            theirs = pipe.encode_prompt(prompt, "cpu", 1, False)[0].numpy()
        assert relative_l2(np.asarray(tokens), theirs) < TOLERANCE
    random = np.random.default_rng(0)
    noisy, masked = (random.standard_normal((2, 8, 8, 4)).astype(np.float32) for _ in range(2))
    mask, times = random.integers(0, 2, (2, 8, 8, 1)).astype(np.float32), np.array([700, 20])
    tokens = MODEL.prompts(params, jnp.array([0, 1]))
    ours = jax.jit(MODEL.predict)(params, noisy, mask, masked, times, tokens)
    inputs = torch.from_numpy(np.concatenate([noisy, mask, masked], axis=-1)).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = pipe.unet(inputs, torch.from_numpy(times), torch.from_numpy(np.array(tokens))).sample
    assert relative_l2(np.asarray(ours), theirs.permute(0, 2, 3, 1).numpy()) < TOLERANCE
    with torch.no_grad():
        latents = pipe.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
    mean, _ = MODEL.vae_posterior(params, np.zeros((1, 16, 16, 3), np.float32))
    assert relative_l2(np.asarray(mean), latents.permute(0, 2, 3, 1).numpy()) < TOLERANCE
    assert CONFIG.data.prompt in (exported / "README.md").read_text()


def test_the_way_back_is_exact(exported: Path, params: dict[str, Any], tmp_path: Path) -> None:
    again = tmp_path / "again"
    flags = ["--text-encoder", str(exported), "--output", str(again), "--image-size", "16"]
    assert main(["import", "--base", str(exported), *flags]) == 0
    config, found = load_model_folder(again)
    assert config.model.reference_encoder == CONFIG.model.reference_encoder
    for name in ("unet", "vae", "reference_encoder"):
        one, other = flatten_params(params[name]), flatten_params(found[name])
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[path], other[path]) for path in one)
    np.testing.assert_array_equal(found["null_tokens"]["embedding"], params["null_tokens"]["embedding"])


def test_what_diffusers_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = presets.tiny().vae
    unet = dataclasses.replace(CONFIG.model.unet, in_channels=25, out_channels=12)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vae=vae, unet=unet, image_size=32))
    params = DiffuseToChoose(config.model).init(jax.random.key(0))
    folder = save_model_folder(tmp_path / "model", config, params)
    assert main(["export", "--checkpoint", str(folder), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        "PatchAutoencoderConfig: StableDiffusionInpaintPipeline has no such thing" in error and error.count("\n") == 1
    )
    assert main(["verify", "--checkpoint", str(folder)]) == 2
    assert "verify compares with our pipeline's code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
