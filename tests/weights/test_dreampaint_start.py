"""A start for DreamPaint: Stable Diffusion with its text encoder and tokenizer."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from dtc_jax.config import CLIPTextConfig
from dtc_jax.data.tokenizer import BYTE_VOCABULARY, Tokenizer, byte_files
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.initial import initial_params
from dtc_jax.weights import clip
from dtc_jax.weights.checkpoint_source import open_checkpoint
from dtc_jax.weights.command import main
from dtc_jax.weights.hub import choose_files
from dtc_jax.weights.model_folder import flatten_params, load_model_folder
from dtc_jax.weights.prompts import find_tokenizer
from tests.weights.published_files import ENCODER, random_params, spelled, stable_diffusion_file, write

TEXT = CLIPTextConfig(
    vocab_size=BYTE_VOCABULARY,
    eos_token_id=BYTE_VOCABULARY - 1,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=1,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write(folder, "sd", stable_diffusion_file()[0])
    write(folder / "text_encoder", "model", spelled(clip.text_layout(), random_params(clip.text_shapes(TEXT), 7)))
    (folder / "tokenizer").mkdir()
    for name, text in byte_files().items():
        (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
    return folder


def imports(published: Path, target: Path, *flags: str) -> int:
    base = str(published / "sd.safetensors")
    return main(["import", "--base", base, "--output", str(target), "--image-size", "32", *flags])


def test_the_start_holds_what_prompts_need(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start"
    assert imports(published, start, "--text-encoder", str(published)) == 0
    printed = capsys.readouterr().out
    assert "text_encoder" in printed and "vgg" not in printed
    last = printed.splitlines()[-1]
    assert f"python train.py dreampaint --run-dir RUN --init-from {start} --data.product PHOTOS" in last
    assert "--model.reference-encoder.hidden-size 16" in last and "--model.hint" not in last
    config, params = load_model_folder(start)
    assert config.model.reference_encoder == TEXT and config.model.unet.in_channels == 9
    assert params.keys() == {"unet", "vae", "reference_encoder", "prompts", "null_tokens"}
    for path, leaf in flatten_params(params["reference_encoder"]).items():
        np.testing.assert_array_equal(leaf, random_params(clip.text_shapes(TEXT), 7)[path])
    # It is a whole model: it can be opened and sampled, and training begins with its very networks.
    open_checkpoint(start)
    Pipeline.load(start)
    tokenizer = find_tokenizer(config.model, [start])
    ids = np.stack([tokenizer.encode(prompt, 77) for prompt in (config.data.prompt, "")])
    tokens = DiffuseToChoose(config.model).encode_prompts(params, ids)
    np.testing.assert_allclose(params["prompts"]["product"], tokens[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(params["null_tokens"]["embedding"], tokens[1:], rtol=1e-5, atol=1e-6)
    begun = initial_params(config, jax.random.key(0), [start])
    for name in ("unet", "vae", "reference_encoder"):
        jax.tree.map(np.testing.assert_array_equal, begun[name], params[name])
    assert main(["inspect", str(start)]) == 0
    assert "missing" not in capsys.readouterr().out


def test_what_is_fetched_from_the_hub() -> None:
    tokenizer = [f"tokenizer/{name}" for name in ("merges.txt", "tokenizer_config.json", "vocab.json")]
    weights = ["text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"]
    files = ["model_index.json", *weights, *tokenizer, "unet/diffusion_pytorch_model.safetensors"]
    chosen = choose_files(files, ("text_encoder", "tokenizer"), None)
    assert chosen == ["model_index.json", *weights[:2], *tokenizer]


def test_another_tokenizer_is_refused(published: Path, tmp_path: Path) -> None:
    assert imports(published, tmp_path / "start", "--text-encoder", str(published)) == 0
    config, _ = load_model_folder(tmp_path / "start", networks=("prompts",))
    files = byte_files()
    vocabulary = files["vocab.json"].replace("{", '{"more": 514, ', 1)
    (tmp_path / "start" / "tokenizer" / "vocab.json").write_text(vocabulary, encoding="utf-8")
    assert Tokenizer({**files, "vocab.json": vocabulary}).vocab_size == 515
    with pytest.raises(ValueError, match=r"has 515 entries, .*vocab_size = 514: it belongs to another text encoder"):
        find_tokenizer(config.model, [tmp_path / "start"])


def test_what_cannot_be_a_start(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(message: str, *flags: str) -> None:
        assert imports(published, tmp_path / "start", *flags) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not (tmp_path / "start").exists()

    refused("needs text_encoder/ and tokenizer/", "--text-encoder", str(published / "sd.safetensors"))
    both = ("--text-encoder", str(published))
    clip_vision = write(
        tmp_path, "clip", spelled(clip.vision_layout(), random_params(clip.vision_shapes(ENCODER.vision), 1))
    )
    refused("there is no use for reference_encoder", *both, "--reference-encoder", str(clip_vision))
