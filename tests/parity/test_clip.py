"""CLIP against transformers, and Paint by Example's image encoder against diffusers, every tensor random, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dtc_jax import presets
from dtc_jax.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PaintByExampleEncoderConfig
from dtc_jax.models.clip import CLIPModel, CLIPTextModel, CLIPVisionModel, CLIPVisionModelWithProjection
from dtc_jax.models.inputs import CLIP_MEAN, CLIP_STD, normalize_clip
from dtc_jax.models.paint_by_example import PaintByExampleImageEncoder
from dtc_jax.weights.clip import (
    CLIP,
    PAINT_BY_EXAMPLE_LDM,
    VISION_WITH_PROJECTION,
    clip_shapes,
    paint_by_example_layout,
    paint_by_example_shapes,
    paint_by_example_tensors,
    text_layout,
    text_shapes,
    vision_layout,
    vision_shapes,
)
from dtc_jax.weights.mapping import torch_shapes
from dtc_jax.weights.model_folder import flatten_params
from dtc_jax.weights.tensors import ArraySource
from tests.parity.conversion import assert_exact_round_trip, imported
from tests.parity.naming import fill_randomly, relative_l2

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
VISION = CLIPVisionConfig(
    image_size=12,
    patch_size=4,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    projection_dim=10,
)
TEXT = CLIPTextConfig(
    vocab_size=30,
    max_position_embeddings=9,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=3,
    eos_token_id=29,
    projection_dim=10,
)
# Two layers of the mapper: (9 + 1) // 5, as diffusers counts them.
ENCODER = PaintByExampleEncoderConfig(
    vision=CLIPVisionConfig(
        image_size=8, patch_size=4, hidden_size=8, intermediate_size=12, num_hidden_layers=9, num_attention_heads=2
    ),
    mapper_layers=2,
    projection_dim=6,
)


def vision_config(config: CLIPVisionConfig) -> Any:
    return transformers.CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        projection_dim=config.projection_dim,
    )


def text_config(config: CLIPTextConfig) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        projection_dim=config.projection_dim,
        bos_token_id=0,
        eos_token_id=config.eos_token_id,
    )


def clip_oracle(config: CLIPConfig) -> torch.nn.Module:
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=vision_config(config.vision).to_dict(),
            text_config=text_config(config.text).to_dict(),
            projection_dim=config.vision.projection_dim,
        )
    ).eval()


def paint_by_example_oracle(config: PaintByExampleEncoderConfig) -> torch.nn.Module:
    module = diffusers.pipelines.deprecated.paint_by_example.image_encoder.PaintByExampleImageEncoder
    return module(vision_config(config.vision), proj_size=config.projection_dim).eval()


def pixels_for(config: CLIPVisionConfig, seed: int = 2) -> np.ndarray:
    size = config.image_size
    return np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype(np.float32)


def token_ids(config: CLIPTextConfig) -> np.ndarray:
    """Three texts of different lengths; what follows the end is random, so that looking ahead would show."""
    random = np.random.default_rng(3)
    ids = random.integers(1, config.eos_token_id, (3, config.max_position_embeddings - 1)).astype(np.int32)
    for row, end in enumerate((3, 7, 5)):
        ids[row, end] = config.eos_token_id
    ids[0, 6] = config.eos_token_id  # the first one counts
    return ids


def nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def saved(module: torch.nn.Module, folder: Path) -> dict[str, np.ndarray]:
    """The tensors of the file that the package itself writes."""
    module.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_encoder(activation: str, tmp_path: Path) -> None:
    config = CLIPVisionConfig(**{**vars(VISION), "hidden_act": activation})
    reference = transformers.CLIPVisionModel(vision_config(config)).eval()
    fill_randomly(reference, seed=1)
    params = imported(saved(reference, tmp_path), vision_layout(prefix=""), vision_shapes(config))
    pixels = pixels_for(config)
    with torch.no_grad():
        output = reference(nchw(pixels))
        normalized = reference.post_layernorm(output.last_hidden_state)
    model = CLIPVisionModel(config)

    @jax.jit
    def run(params, pixels):
        return *model.apply(params, pixels), model.apply(params, pixels, method="normalized_tokens")

    expected = (output.last_hidden_state, output.pooler_output, normalized)
    for name, actual, wanted in zip(("tokens", "pooled", "normalized"), run(params, pixels), expected, strict=True):
        assert wanted.std() > 0.1
        assert relative_l2(actual, wanted) <= TOLERANCE, name
    with pytest.raises(ValueError, match="12x12 pixels, not 12x16"):
        model.apply(params, np.zeros((1, 12, 16, 3), np.float32))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder(activation: str, tmp_path: Path) -> None:
    config = CLIPTextConfig(**{**vars(TEXT), "hidden_act": activation})
    reference = transformers.CLIPTextModel(text_config(config)).eval()
    fill_randomly(reference, seed=4)
    params = imported(saved(reference, tmp_path), text_layout(prefix=""), text_shapes(config))
    ids = token_ids(config)
    with torch.no_grad():
        output = reference(torch.from_numpy(ids).long())
    tokens, pooled = jax.jit(CLIPTextModel(config).apply)(params, ids)
    assert output.last_hidden_state.std() > 0.1
    assert relative_l2(tokens, output.last_hidden_state) <= TOLERANCE
    assert relative_l2(pooled, output.pooler_output) <= TOLERANCE
    np.testing.assert_array_equal(pooled[0], tokens[0, 3])
    with pytest.raises(ValueError, match="at most 9 tokens, not 10"):
        CLIPTextModel(config).apply(params, np.zeros((1, 10), np.int32))


def test_both_encoders_with_projections(tmp_path: Path) -> None:
    config = CLIPConfig(vision=VISION, text=TEXT)
    reference = clip_oracle(config)
    fill_randomly(reference, seed=5)
    with torch.no_grad():
        reference.logit_scale.fill_(1.3)
    state = saved(reference, tmp_path)
    params = imported(state, CLIP, clip_shapes(config))
    pixels, ids = pixels_for(VISION), token_ids(TEXT)
    with torch.no_grad():
        output = reference(input_ids=torch.from_numpy(ids).long(), pixel_values=nchw(pixels))
        images = reference.get_image_features(nchw(pixels)).pooler_output
        texts = reference.get_text_features(torch.from_numpy(ids).long()).pooler_output
    model = CLIPModel(config)

    @jax.jit
    def run(params, pixels, ids):
        image = model.apply(params, pixels, method="image_features")
        return image, model.apply(params, ids, method="text_features"), model.apply(params, pixels, ids)

    expected = (images, texts, output.logits_per_image)
    for name, actual, wanted in zip(("images", "texts", "logits"), run(params, pixels, ids), expected, strict=True):
        assert relative_l2(actual, wanted) <= TOLERANCE, name
    # The image half alone, from the same file.
    half = imported(state, VISION_WITH_PROJECTION, vision_shapes(VISION, with_projection=True))
    alone = jax.jit(CLIPVisionModelWithProjection(VISION).apply)(half, pixels)
    assert relative_l2(alone, images) <= TOLERANCE


def test_paint_by_example(tmp_path: Path) -> None:
    reference = paint_by_example_oracle(ENCODER)
    fill_randomly(reference, seed=6)
    params = imported(saved(reference, tmp_path), paint_by_example_layout("model."), paint_by_example_shapes(ENCODER))
    pixels = pixels_for(ENCODER.vision)
    with torch.no_grad():
        pooled, unconditional = reference(nchw(pixels), return_uncond_vector=True)
        tokens = reference.model.post_layernorm(reference.model(nchw(pixels)).last_hidden_state)
        everything = reference.proj_out(reference.final_layer_norm(reference.mapper(tokens)))
    model = PaintByExampleImageEncoder(ENCODER)

    @jax.jit
    def run(params, pixels):
        return model.apply(params, pixels), model.apply(params, pixels, tokens="all")

    actual, actual_all = run(params, pixels)
    assert pooled.shape == (2, 1, 6) and everything.shape == (2, 5, 6)
    assert relative_l2(actual, pooled) <= TOLERANCE
    assert relative_l2(actual_all, everything) <= TOLERANCE
    np.testing.assert_array_equal(params["params"]["uncond_vector"], unconditional.detach())


# ------------------------------------------------------------------------------------------------------ layouts


def test_round_trips_are_exact() -> None:
    text = transformers.CLIPTextModel(text_config(TEXT))
    vision = transformers.CLIPVisionModel(vision_config(VISION))
    both = clip_oracle(CLIPConfig(vision=VISION, text=TEXT))
    encoder = paint_by_example_oracle(ENCODER)
    for module in (text, vision, both, encoder):
        fill_randomly(module)
    for prefix, module, layout, shapes in (
        ("text_model.", text, text_layout, text_shapes(TEXT)),
        ("vision_model.", vision, vision_layout, vision_shapes(VISION)),
    ):
        state = module.state_dict()
        assert_exact_round_trip(state, layout(prefix=""), shapes)
        # Files of transformers 4: a prefix, and a buffer.
        older = {prefix + name: tensor for name, tensor in state.items()}
        older[f"{prefix}embeddings.position_ids"] = torch.arange(9)[None]
        assert_exact_round_trip(older, layout(), shapes, ignored=1)
    assert_exact_round_trip(both.state_dict(), CLIP, clip_shapes(CLIPConfig(vision=VISION, text=TEXT)))
    shapes = paint_by_example_shapes(ENCODER)
    state = encoder.state_dict()
    assert_exact_round_trip(state, paint_by_example_layout("model."), shapes)
    older = {name.replace("model.", "model.vision_model.", 1): tensor for name, tensor in state.items()}
    assert_exact_round_trip(older, paint_by_example_layout(), shapes)
    assert_exact_round_trip(single_file(state), PAINT_BY_EXAMPLE_LDM, shapes)


def single_file(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' tensors under the names of Paint by Example's own file.

    The reverse of `convert_paint_by_example_checkpoint` in diffusers 0.42.1,
    pipelines/stable_diffusion/convert_from_ckpt.py.
    """
    result = {}
    parts = {"attn1.to_out.0": "attn.c_proj", "norm1": "ln_1", "norm3": "ln_2"}
    parts |= {"ff.net.0.proj": "mlp.c_fc", "ff.net.2": "mlp.c_proj"}
    for name, tensor in state.items():
        if name.startswith("model."):
            result["cond_stage_model.transformer.vision_model." + name.removeprefix("model.")] = tensor
        elif name.startswith("mapper.blocks."):
            number, rest = name.removeprefix("mapper.blocks.").split(".", 1)
            block = f"cond_stage_model.mapper.resblocks.{number}"
            part, kind = rest.rsplit(".", 1)
            if part == "attn1.to_q":
                three = [state[name.replace("to_q", other)] for other in ("to_q", "to_k", "to_v")]
                result[f"{block}.attn.c_qkv.{kind}"] = torch.cat(three)
            elif part in parts:
                result[f"{block}.{parts[part]}.{kind}"] = tensor
        elif name.startswith("final_layer_norm."):
            result[name.replace("final_layer_norm", "cond_stage_model.final_ln")] = tensor
        else:
            result[name.replace("uncond_vector", "learnable_vector")] = tensor
    return result


def test_paint_by_examples_single_file_holds_the_same() -> None:
    encoder = paint_by_example_oracle(ENCODER)
    fill_randomly(encoder, seed=7)
    state, shapes = encoder.state_dict(), paint_by_example_shapes(ENCODER)
    expected = flatten_params(imported(state, paint_by_example_layout("model."), shapes))
    found = flatten_params(imported(single_file(state), PAINT_BY_EXAMPLE_LDM, shapes))
    assert list(found) == list(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_paint_by_example_is_found_in_its_single_file() -> None:
    state = single_file(paint_by_example_oracle(ENCODER).state_dict())
    source = ArraySource({"model.diffusion_model.out.2.bias": np.zeros(4), "betas": np.zeros(9), **state})
    assert set(paint_by_example_tensors(source).keys()) == set(state)


def test_published_names_shapes_and_counts() -> None:
    large, base = presets.clip_vit_large_patch14(), presets.clip_vit_base_patch32()
    with torch.device("meta"):
        vision = transformers.CLIPVisionModel(vision_config(large.vision)).state_dict()
        text = transformers.CLIPTextModel(text_config(large.text)).state_dict()
        # transformers' defaults are ViT-B/32's.
        both = transformers.CLIPModel(transformers.CLIPConfig()).state_dict()
        encoder = paint_by_example_oracle(presets.paint_by_example_encoder()).state_dict()
    for layout, shapes, state, count in (
        (vision_layout(""), vision_shapes(large.vision), vision, 303_179_776),
        (text_layout(""), text_shapes(large.text), text, 123_060_480),
        (CLIP, clip_shapes(base), both, 151_277_313),
        (
            paint_by_example_layout("model."),
            paint_by_example_shapes(presets.paint_by_example_encoder()),
            encoder,
            303_179_776 + 5 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1025 * 768 + 768,
        ),
    ):
        expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert torch_shapes(layout, shapes) == expected, layout.name
        assert sum(tensor.numel() for tensor in state.values()) == count, layout.name


def test_preprocessing_constants() -> None:
    assert list(CLIP_MEAN) == transformers.image_utils.OPENAI_CLIP_MEAN
    assert list(CLIP_STD) == transformers.image_utils.OPENAI_CLIP_STD
    image = np.array([[[[0, 128, 255]]]], np.uint8)
    wanted = (np.array([0, 128, 255]) / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(normalize_clip(image)[0, 0, 0], wanted, rtol=1e-5)
