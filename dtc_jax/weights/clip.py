"""CLIP in transformers' layouts, and Paint by Example's image encoder in diffusers' and its own.

Files of transformers up to 4 have `vision_model.` or `text_model.` before every name of a single encoder, those of
transformers 5 do not; files of both encoders always do. Older ones hold the buffers `position_ids` as well.

Paint by Example's own names: Fantasy-Studio/Paint-by-Example, ldm/modules/encoders/{modules,xf}.py and
ldm/models/diffusion/ddpm.py at 52a7e3736d579889e13c988403b7fd721bb22293.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dtc_jax.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, PaintByExampleEncoderConfig
from dtc_jax.models.clip import CLIPModel, CLIPTextModel, CLIPVisionModel, CLIPVisionModelWithProjection
from dtc_jax.models.paint_by_example import PaintByExampleImageEncoder
from dtc_jax.weights.layouts import Entry, Layout, Shapes, flax_shapes, join_entries, rule_entries
from dtc_jax.weights.recognition import Detected, config_beside, length, shape_of, shapes_of, with_usual
from dtc_jax.weights.tensor_source import RenamedSource, Shape, TensorSource, WeightsError, with_prefix
from dtc_jax.weights.transforms import IDENTITY, LINEAR, joined

_BUFFERS = r"(.*\.)?embeddings\.position_ids"


def _prefixed(shapes: Shapes, prefix: str) -> list[Entry]:
    return [replace(entry, names=(prefix + entry.names[0],)) for entry in rule_entries(shapes)]


def vision_layout(prefix: str = "vision_model.") -> Layout:
    """The image encoder alone; the prefix is before every name ("" for transformers 5)."""
    return Layout("transformers CLIPVisionModel", partial(_prefixed, prefix=prefix), (_BUFFERS,))


def text_layout(prefix: str = "text_model.") -> Layout:
    """The text encoder alone; Stable Diffusion's single files have `cond_stage_model.transformer.text_model.`."""
    return Layout("transformers CLIPTextModel", partial(_prefixed, prefix=prefix), (_BUFFERS,))


VISION_WITH_PROJECTION = Layout(
    "transformers CLIPVisionModelWithProjection",
    rule_entries,
    # A file of the whole CLIP holds the other half too.
    (_BUFFERS, r"text_model\..*", r"text_projection\.weight", r"logit_scale"),
)
CLIP = Layout("transformers CLIPModel", rule_entries, (_BUFFERS,))


def paint_by_example_layout(prefix: str = "model.vision_model.") -> Layout:
    """diffusers' `PaintByExampleImageEncoder`; with transformers 5 the prefix of CLIP's names is `model.` alone."""

    def entries(shapes: Shapes) -> list[Entry]:
        return rule_entries(shapes, renames=[(r"^model\.", prefix)])

    return Layout("diffusers PaintByExampleImageEncoder", entries, (_BUFFERS,))


_LDM_RENAMES = (
    (r"^model\.", "cond_stage_model.transformer.vision_model."),
    (r"^mapper\.blocks\.", "cond_stage_model.mapper.resblocks."),
    (r"^final_layer_norm\.", "cond_stage_model.final_ln."),
    (r"\.attn1\.to_out\.0\.", ".attn.c_proj."),
    (r"\.norm1\.", ".ln_1."),
    (r"\.norm3\.", ".ln_2."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.c_fc."),
    (r"\.ff\.net\.2\.", ".mlp.c_proj."),
    (r"^uncond_vector$", "learnable_vector"),
)


def _ldm_entries(shapes: Shapes) -> list[Entry]:
    entries = rule_entries(shapes, renames=_LDM_RENAMES)
    blocks = sorted({entry.names[0].split(".attn1.")[0] for entry in entries if ".attn1." in entry.names[0]})
    # One head: query, key and value are thirds of one matrix, without any interleaving.
    groups = [
        ([f"{block}.attn1.to_{part}.{kind}" for part in "qkv"], f"{block}.attn.c_qkv.{kind}")
        for block in blocks
        for kind in ("weight", "bias")
    ]
    return join_entries(
        entries, groups, lambda entry: joined(LINEAR if entry.paths[0].endswith("kernel") else IDENTITY, 3)
    )


PAINT_BY_EXAMPLE_LDM = Layout("Paint by Example's image encoder, LDM", _ldm_entries, (_BUFFERS,))


def paint_by_example_tensors(source: TensorSource) -> RenamedSource:
    """The image encoder's tensors of Paint by Example's single file, for `PAINT_BY_EXAMPLE_LDM`; names are kept."""
    outside = ("proj_out.weight", "proj_out.bias", "learnable_vector")
    names = [name for name in source.keys() if name.startswith("cond_stage_model.") or name in outside]  # noqa: SIM118
    return RenamedSource(source, names, lambda name: name)


# ----------------------------------------------------------------------------------------------------------- shapes


def vision_shapes(config: CLIPVisionConfig, with_projection: bool = False) -> dict[str, Shape]:
    """Flax parameters of an image encoder of these sizes."""
    module = CLIPVisionModelWithProjection(config) if with_projection else CLIPVisionModel(config)
    return shapes_of(module, _image(config))


def text_shapes(config: CLIPTextConfig) -> dict[str, Shape]:
    """Flax parameters of a text encoder of these sizes."""
    module = CLIPTextModel(config)
    return flax_shapes(jax.eval_shape(lambda ids: module.init(jax.random.key(0), ids), _TOKEN_IDS)["params"])


def clip_shapes(config: CLIPConfig) -> dict[str, Shape]:
    """Flax parameters of both encoders and what joins them."""
    module, pixels = CLIPModel(config), jax.ShapeDtypeStruct(_image(config.vision), jnp.float32)
    return flax_shapes(jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), pixels, _TOKEN_IDS)["params"])


def paint_by_example_shapes(config: PaintByExampleEncoderConfig) -> dict[str, Shape]:
    """Flax parameters of Paint by Example's encoder of these sizes."""
    return shapes_of(PaintByExampleImageEncoder(config), _image(config.vision))


_TOKEN_IDS = jax.ShapeDtypeStruct((1, 1), jnp.int32)


def _image(config: CLIPVisionConfig) -> Shape:
    return (1, config.image_size, config.image_size, 3)


# ------------------------------------------------------------------------------------------------------ recognition

_VISION_MARK = "embeddings.class_embedding"
_TEXT_MARK = "embeddings.token_embedding.weight"
_LIKE = "a CLIP"
_HEAD_DIM = 64
_ASSUMED = f"names; heads of {_HEAD_DIM} and OpenAI's quick_gelu assumed"


def recognise(source: TensorSource) -> list[Detected]:
    """CLIP's encoders, or Paint by Example's, in a source; also inside an LDM single file."""
    names = frozenset(source.keys())
    return _paint_by_example(source, names) or _clip(source, names)


def _paint_by_example(source: TensorSource, names: frozenset[str]) -> list[Detected]:
    if "cond_stage_model.mapper.resblocks.0.ln_1.weight" in names:
        inner: TensorSource = paint_by_example_tensors(source)
        prefix, mapper = "cond_stage_model.transformer.vision_model.", r"cond_stage_model\.mapper\.resblocks\.(\d+)\."
        layout = PAINT_BY_EXAMPLE_LDM
    elif "mapper.blocks.0.norm1.weight" in names:
        older = any(name.startswith("model.vision_model.") for name in names)
        inner, prefix, mapper = source, "model.vision_model." if older else "model.", r"mapper\.blocks\.(\d+)\."
        layout = paint_by_example_layout(prefix)
    else:
        return []
    config = PaintByExampleEncoderConfig(
        vision=_vision_config(inner, prefix, config_beside(source, "PaintByExampleImageEncoder")),
        mapper_layers=length(names, mapper),
        projection_dim=shape_of(inner, "proj_out.weight", 2, _LIKE)[0],
    )
    return [Detected("paint_by_example_encoder", layout, inner, config, paint_by_example_shapes(config), _ASSUMED)]


def _clip(source: TensorSource, names: frozenset[str]) -> list[Detected]:
    if {f"vision_model.{_VISION_MARK}", f"text_model.{_TEXT_MARK}", "logit_scale"} <= names:
        published = config_beside(source, "CLIPModel") or {}
        config = CLIPConfig(
            vision=_vision_config(source, "vision_model.", _inner(published, "vision_config", source)),
            text=_text_config(source, "text_model.", _inner(published, "text_config", source)),
        )
        return [Detected("clip", CLIP, source, config, clip_shapes(config), _reason(published))]
    for prefix in ("vision_model.", ""):
        if {prefix + _VISION_MARK, f"{prefix}pre_layrnorm.weight"} <= names:
            projected = "visual_projection.weight" in names
            beside = config_beside(source, f"CLIPVisionModel{'WithProjection' if projected else ''}")
            vision = _vision_config(source, prefix, beside)
            layout = VISION_WITH_PROJECTION if projected else vision_layout(prefix)
            wanted = vision_shapes(vision, projected)
            return [Detected("clip_vision", layout, source, vision, wanted, _reason(beside))]
    for outside, prefix in (("", "text_model."), ("", ""), ("cond_stage_model.transformer.", "text_model.")):
        if {outside + prefix + _TEXT_MARK, f"{outside}{prefix}final_layer_norm.weight"} <= names:
            inner = with_prefix(source, outside) if outside else source
            beside = config_beside(source, "CLIPTextModel")
            text = _text_config(inner, prefix, beside)
            return [Detected("clip_text", text_layout(prefix), inner, text, text_shapes(text), _reason(beside))]
    return []


def _reason(published: Mapping[str, Any] | None) -> str:
    return "names, config.json" if published else _ASSUMED


def _common(source: TensorSource, prefix: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both encoders have."""
    width = shape_of(source, f"{prefix}embeddings.position_embedding.weight", 2, _LIKE)[1]
    usual = {
        "hidden_act": "quick_gelu",
        "num_attention_heads": max(1, width // _HEAD_DIM),
        "layer_norm_eps": 1e-5,
    }
    fields = with_usual(published, usual, f"{source.path}'s config.json")
    activation = fields["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise WeightsError(f"{source.path}'s config.json: hidden_act = {activation!r}; supported: quick_gelu, gelu")
    return fields | {
        "hidden_size": width,
        "intermediate_size": shape_of(source, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2, _LIKE)[0],
        "num_hidden_layers": length(source.keys(), rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
    }


def to_transformers_text_config(config: CLIPTextConfig) -> dict[str, Any]:
    """config.json of transformers' `CLIPTextModel`, without what says the class."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    # The marks are the last two entries, and padding is with the end.
    marks = {"bos_token_id": config.eos_token_id - 1, "pad_token_id": config.eos_token_id}
    return {"model_type": "clip_text_model", **fields, **marks}


def _projection_dim(source: TensorSource, name: str, published: Mapping[str, Any], otherwise: int) -> int:
    if name in source.keys():  # noqa: SIM118
        return shape_of(source, name, 2, _LIKE)[0]
    fields = with_usual(published, {"projection_dim": otherwise}, f"{source.path}'s config.json")
    return int(fields["projection_dim"])


def _inner(published: Mapping[str, Any], name: str, source: TensorSource) -> Mapping[str, Any] | None:
    """The configuration of one encoder in that of both."""
    inner = published.get(name)
    if inner is not None and not isinstance(inner, Mapping):
        raise WeightsError(f"{source.path}'s config.json: {name} is no configuration")
    return inner


def _vision_config(source: TensorSource, prefix: str, published: Mapping[str, Any] | None) -> CLIPVisionConfig:
    published = published or {}
    patch_size = shape_of(source, f"{prefix}embeddings.patch_embedding.weight", 4, _LIKE)[2]
    patches = shape_of(source, f"{prefix}embeddings.position_embedding.weight", 2, _LIKE)[0] - 1
    return CLIPVisionConfig(
        image_size=math.isqrt(patches) * patch_size,
        patch_size=patch_size,
        projection_dim=_projection_dim(source, "visual_projection.weight", published, CLIPVisionConfig.projection_dim),
        **_common(source, prefix, published),
    )


def _text_config(source: TensorSource, prefix: str, published: Mapping[str, Any] | None) -> CLIPTextConfig:
    published = published or {}
    vocab_size = shape_of(source, f"{prefix}{_TEXT_MARK}", 2, _LIKE)[0]
    # Older configurations say 2, by mistake (huggingface/transformers#24773): it is the last token.
    fields = with_usual(published, {"eos_token_id": 2}, f"{source.path}'s config.json")
    eos_token_id = fields["eos_token_id"]
    return CLIPTextConfig(
        vocab_size=vocab_size,
        max_position_embeddings=shape_of(source, f"{prefix}embeddings.position_embedding.weight", 2, _LIKE)[0],
        eos_token_id=vocab_size - 1 if eos_token_id == 2 else eos_token_id,
        projection_dim=_projection_dim(source, "text_projection.weight", published, CLIPTextConfig.projection_dim),
        **_common(source, prefix, published),
    )
