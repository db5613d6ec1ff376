"""TAESD, CLIP, Paint by Example's encoder, Inception and HED: recognised by names and shapes, read back to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtc_jax.config import (
    AutoencoderTinyConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    HEDConfig,
    InceptionConfig,
    PaintByExampleEncoderConfig,
)
from dtc_jax.weights import autoencoder_tiny, clip, hed, inception
from dtc_jax.weights.mapping import Layout, Shapes, export_tensors, import_params
from dtc_jax.weights.recognition import Detected
from dtc_jax.weights.tensors import ArraySource, WeightsError, open_tensors, with_prefix, write_tensors

TAESD = AutoencoderTinyConfig(latent_channels=6, channels=4, num_encoder_blocks=(1, 3, 2), num_decoder_blocks=(2, 3, 1))
# Heads of 64 channels, as in every published CLIP: that is what is assumed without a config.json.
VISION = CLIPVisionConfig(
    image_size=12,
    patch_size=4,
    hidden_size=128,
    intermediate_size=24,
    num_hidden_layers=9,
    num_attention_heads=2,
    projection_dim=10,
)
ALONE = CLIPVisionConfig(**{**vars(VISION), "projection_dim": 768})
TEXT = CLIPTextConfig(
    vocab_size=30,
    max_position_embeddings=9,
    hidden_size=64,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=1,
    eos_token_id=29,
    projection_dim=10,
)
TEXT_ALONE = CLIPTextConfig(**{**vars(TEXT), "projection_dim": 768})
BOTH = CLIPConfig(vision=VISION, text=TEXT)
ENCODER = PaintByExampleEncoderConfig(vision=ALONE, mapper_layers=2, projection_dim=6)
INCEPTION = InceptionConfig(channel_divisor=16, num_classes=1008)
HED = HEDConfig(block_channels=(4, 6, 8), convolutions_per_block=(2, 1, 3))

RECOGNISERS: tuple[Callable[..., list[Detected]], ...] = (
    autoencoder_tiny.recognise,
    clip.recognise,
    hed.recognise,
    inception.recognise,
)


def taesd_part(part: str) -> Shapes:
    return autoencoder_tiny.part_shapes(autoencoder_tiny.shapes(TAESD), part)


CASES: dict[str, tuple[str, Layout, Any, Callable[[], Shapes]]] = {
    "taesd-diffusers": ("vae", autoencoder_tiny.DIFFUSERS, TAESD, lambda: autoencoder_tiny.shapes(TAESD)),
    "taesd-encoder": ("taesd_encoder", autoencoder_tiny.TAESD_ENCODER, TAESD, lambda: taesd_part("encoder")),
    "taesd-decoder": ("taesd_decoder", autoencoder_tiny.TAESD_DECODER, TAESD, lambda: taesd_part("decoder")),
    "clip": ("clip", clip.CLIP, BOTH, lambda: clip.clip_shapes(BOTH)),
    "clip-vision": ("clip_vision", clip.vision_layout(), ALONE, lambda: clip.vision_shapes(ALONE)),
    "clip-vision-5": ("clip_vision", clip.vision_layout(""), ALONE, lambda: clip.vision_shapes(ALONE)),
    "clip-projected": ("clip_vision", clip.VISION_WITH_PROJECTION, VISION, lambda: clip.vision_shapes(VISION, True)),
    "clip-text": ("clip_text", clip.text_layout(), TEXT_ALONE, lambda: clip.text_shapes(TEXT_ALONE)),
    "clip-text-5": ("clip_text", clip.text_layout(""), TEXT_ALONE, lambda: clip.text_shapes(TEXT_ALONE)),
    "paint-by-example": (
        "paint_by_example_encoder",
        clip.paint_by_example_layout(),
        ENCODER,
        lambda: clip.paint_by_example_shapes(ENCODER),
    ),
    "paint-by-example-5": (
        "paint_by_example_encoder",
        clip.paint_by_example_layout("model."),
        ENCODER,
        lambda: clip.paint_by_example_shapes(ENCODER),
    ),
    "paint-by-example-ldm": (
        "paint_by_example_encoder",
        clip.PAINT_BY_EXAMPLE_LDM,
        ENCODER,
        lambda: clip.paint_by_example_shapes(ENCODER),
    ),
    "inception": ("inception", inception.PYTORCH_FID, INCEPTION, lambda: inception.shapes(INCEPTION)),
    "hed": ("hed", hed.CONTROLNET, HED, lambda: hed.shapes(HED)),
}


def random_params(shapes: Shapes) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize("case", CASES)
def test_is_recognised_and_read_back(case: str, tmp_path: Path) -> None:
    network, layout, config, shapes = CASES[case]
    params = random_params(shapes())
    write_tensors(tmp_path, "model", export_tensors(layout, params))
    source = open_tensors(tmp_path)
    found = [detected for recognise in RECOGNISERS for detected in recognise(source)]
    assert [(detected.network, detected.layout.name) for detected in found] == [(network, layout.name)]
    # A decoder does not show what the encoder looks like, and none of them shows the image size of its photos.
    assert found[0].config == config
    read = import_params(found[0].layout, found[0].source, found[0].shapes)
    assert list(read) == list(params)
    for path, array in params.items():
        np.testing.assert_array_equal(read[path], array, err_msg=path)


def test_inside_single_files() -> None:
    """Stable Diffusion's text encoder and Paint by Example's image encoder among a checkpoint's other tensors."""
    other = {"model.diffusion_model.out.2.bias": np.zeros(4, np.float32), "betas": np.zeros(9, np.float32)}
    text = {tensor.name: tensor.read() for tensor in export_tensors(*_text())}
    state = {f"cond_stage_model.transformer.{name}": array for name, array in text.items()} | other
    (found,) = clip.recognise(ArraySource(state))
    assert (found.network, found.config) == ("clip_text", TEXT_ALONE)
    assert set(import_params(found.layout, found.source, found.shapes)) == set(found.shapes)
    params = random_params(clip.paint_by_example_shapes(ENCODER))
    encoder = {tensor.name: tensor.read() for tensor in export_tensors(clip.PAINT_BY_EXAMPLE_LDM, params)}
    (found,) = clip.recognise(ArraySource(encoder | other))
    assert found.config == ENCODER
    assert set(import_params(found.layout, found.source, found.shapes)) == set(params)


def _text() -> tuple[Layout, dict[str, np.ndarray]]:
    return clip.text_layout(), random_params(clip.text_shapes(TEXT_ALONE))


def test_config_beside_the_file_says_what_names_do_not(tmp_path: Path) -> None:
    write_tensors(tmp_path, "model", export_tensors(*_text()))
    said = {"architectures": ["CLIPTextModel"], "hidden_act": "gelu", "num_attention_heads": 4, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(said))
    (found,) = clip.recognise(open_tensors(tmp_path))
    assert (found.config.hidden_act, found.config.num_attention_heads, found.config.eos_token_id) == ("gelu", 4, 7)
    (tmp_path / "config.json").write_text(json.dumps({**said, "hidden_act": "relu"}))
    with pytest.raises(WeightsError, match="hidden_act = 'relu'"):
        clip.recognise(open_tensors(tmp_path))


def test_wrong_files_are_refused_by_name() -> None:
    params = random_params(inception.shapes(InceptionConfig(channel_divisor=16, num_classes=1000)))
    torchvision = {tensor.name: tensor.read() for tensor in export_tensors(inception.PYTORCH_FID, params)}
    with pytest.raises(WeightsError, match="1000 classes"):
        inception.recognise(ArraySource(torchvision))
    state = {tensor.name: tensor.read() for tensor in export_tensors(hed.CONTROLNET, random_params(hed.shapes(HED)))}
    del state["block2.projection.bias"]
    (found,) = hed.recognise(ArraySource(state, Path("ControlNetHED.pth")))
    with pytest.raises(WeightsError, match=r"ControlNetHED.pth.*1 missing \(block2.projection.bias \[1\]\)"):
        import_params(found.layout, found.source, found.shapes)
    assert not any(recognise(ArraySource({"weight": np.zeros(3)})) for recognise in RECOGNISERS)


def test_a_whole_clip_gives_its_image_encoder_alone() -> None:
    params = random_params(clip.clip_shapes(BOTH))
    state = ArraySource({tensor.name: tensor.read() for tensor in export_tensors(clip.CLIP, params)})
    half = import_params(clip.VISION_WITH_PROJECTION, state, clip.vision_shapes(VISION, with_projection=True))
    alone = import_params(clip.vision_layout(""), with_prefix(state, "vision_model."), clip.vision_shapes(VISION))
    for path, array in half.items():
        np.testing.assert_array_equal(array, params[path], err_msg=path)
    for path, array in alone.items():
        np.testing.assert_array_equal(array, params[f"vision_model/{path}"], err_msg=path)
