"""DINOv2's files: transformers' `Dinov2Model` and Facebook's own.

Our names are transformers'. Facebook's are those of `DinoVisionTransformer` in facebookresearch/dinov2 at b8931f7
(dinov2/models/vision_transformer.py; attention, block, layer_scale, mlp, patch_embed and swiglu_ffn in dinov2/layers),
with the arguments of dinov2/hub/backbones.py: query, key and value are one matrix, in this order.

Both publish a position table for 518 pixels. It is kept as it is, so that an export is the import again; the model
interpolates it to its own image size in Facebook's way (`dtc_jax.models.dinov2.interpolate_positions`). transformers
interpolates in another way, several percent off: for it, `at_image_size` makes the table of the size that is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from dtc_jax.config import ConfigError, DINOv2Config
from dtc_jax.models.dinov2 import Dinov2Model, interpolate_positions
from dtc_jax.weights.layouts import Entry, Layout, Shapes, join_entries, rule_entries, rule_transform
from dtc_jax.weights.recognition import (
    Detected,
    config_beside,
    is_recognised,
    length,
    refuse_other_values,
    shape_of,
    shapes_of,
    with_usual,
)
from dtc_jax.weights.tensor_source import Shape, TensorSource, WeightsError, with_prefix
from dtc_jax.weights.transforms import Transform, joined

POSITIONS = "embeddings/position_embeddings"
"""Flax path of the position table."""

_HEAD_DIM = 64
_IMAGE_SIZE = 224


def shapes(config: DINOv2Config) -> dict[str, Shape]:
    """Flax paths and shapes of the parameters."""
    return shapes_of(Dinov2Model(config), (1, config.image_size, config.image_size, 3))


def at_image_size(params: Mapping[str, np.ndarray], config: DINOv2Config) -> tuple[dict[str, np.ndarray], DINOv2Config]:
    """Parameters whose position table is the one that the model uses, and their configuration.

    Args:
        params: Flat, {Flax path: array}.
        config: Sizes, with any `position_image_size`.
    """
    table = jnp.asarray(params[POSITIONS], jnp.float32)
    positions = np.asarray(interpolate_positions(table, config)).astype(params[POSITIONS].dtype)
    return {**params, POSITIONS: positions}, replace(config, position_image_size=None)


# ---------------------------------------------------------------------------------------------------------- layouts

_FACEBOOK = [
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
]


def _facebook_entries(shapes: Shapes) -> list[Entry]:
    table = rule_entries(shapes, renames=_FACEBOOK)
    layers = length((entry.names[0] for entry in table), r"blocks\.(\d+)\.")
    groups = [
        (
            [f"blocks.{layer}.attn.{part}.{leaf}" for part in ("query", "key", "value")],
            f"blocks.{layer}.attn.qkv.{leaf}",
        )
        for layer in range(layers)
        for leaf in ("weight", "bias")
    ]

    def transform(first: Entry) -> Transform:
        return joined(rule_transform(first.paths[0], shapes[first.paths[0]]), 3)

    return join_entries(table, groups, transform)


TRANSFORMERS = Layout("transformers' Dinov2Model", rule_entries)
FACEBOOK = Layout("Facebook's DinoVisionTransformer", _facebook_entries)


# ------------------------------------------------------------------------------------------------------------ sizes

_SUPPORTED = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3, "use_mask_token": True}


_USUAL = {
    "image_size": _IMAGE_SIZE,
    "patch_size": 14,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "layer_norm_eps": 1e-6,
}
"""transformers' own defaults, which a config.json may leave out."""


def to_transformers_config(config: DINOv2Config) -> dict[str, Any]:
    """transformers' arguments of `Dinov2Config`; its `image_size` is that of the position table."""
    return {
        "image_size": config.position_image_size or config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "use_swiglu_ffn": config.use_swiglu_ffn,
        "layer_norm_eps": config.layer_norm_eps,
        **_SUPPORTED,
    }


def from_transformers_config(
    published: Mapping[str, Any], where: str = "config.json", image_size: int | None = None
) -> DINOv2Config:
    """Sizes from transformers' config.json of a `Dinov2Model`.

    Args:
        published: The configuration.
        where: What messages call it.
        image_size: Of the images that the model is going to see; None takes 224 for the published 518, else theirs.

    Raises:
        WeightsError: it has a setting that our network does not.
    """
    refuse_other_values(published, _SUPPORTED, where)
    sizes = with_usual(published, _USUAL, where)
    return _config(where, table_size=sizes.pop("image_size"), image_size=image_size, **sizes)


def _config(where: str, *, patch_size: int, table_size: int, image_size: int | None, **sizes: Any) -> DINOv2Config:
    # DINOv2 was trained at 518 pixels last; Diffuse to Choose shows it 224.
    usual = _IMAGE_SIZE if (patch_size, table_size) == (14, 518) else table_size
    size = image_size or usual
    position_image_size = None if size == table_size else table_size
    try:
        return DINOv2Config(image_size=size, position_image_size=position_image_size, patch_size=patch_size, **sizes)
    except ConfigError as error:
        raise WeightsError(f"{where}: {error}") from None


# ------------------------------------------------------------------------------------------------------ recognition


_MARKS = ("embeddings.cls_token", "embeddings.position_embeddings", "encoder.layer.0.layer_scale1.lambda1")
_FACEBOOK_MARKS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.ls1.gamma")


def recognise(source: TensorSource) -> list[Detected]:
    """DINOv2 without registers, in either layout; also as the backbone of transformers' classifiers."""
    names = frozenset(source.keys())
    inner: TensorSource = source
    if "dinov2.embeddings.cls_token" in names:
        inner = with_prefix(source, "dinov2.")
        names = frozenset(inner.keys())
    published = config_beside(source, "dinov2")
    if is_recognised(names, _FACEBOOK_MARKS, None):
        layout, prefix, patches, positions = FACEBOOK, "", "patch_embed.proj.weight", "pos_embed"
        blocks, gated, layers = "blocks.0", "blocks.0.mlp.w12.weight", length(names, r"blocks\.(\d+)\.")
    elif is_recognised(names, _MARKS, published):
        layout, prefix = TRANSFORMERS, "embeddings."
        patches, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
        blocks, gated = "encoder.layer.0", "encoder.layer.0.mlp.weights_in.weight"
        layers = length(names, r"encoder\.layer\.(\d+)\.")
    else:
        return []
    if f"{prefix}register_tokens" in names:
        raise WeightsError(f"{source.path}: DINOv2 with registers; the model takes DINOv2 without (e.g. dinov2-giant)")
    if published is not None:
        config = from_transformers_config(published, f"{source.path}'s config.json")
        return [Detected("dinov2", layout, inner, config, shapes(config), "names, config.json")]
    rows, width = shape_of(inner, positions, 3, "DINOv2")[1:]
    patch = shape_of(inner, patches, 4, "DINOv2")[-1]
    table_size = math.isqrt(rows - 1) * patch
    swiglu = gated in names
    config = _config(
        str(source.path),
        patch_size=patch,
        table_size=table_size,
        image_size=None,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // _HEAD_DIM, 1),
        mlp_ratio=4 if swiglu else shape_of(inner, f"{blocks}.mlp.fc1.weight", 2, "DINOv2")[0] // width,
        use_swiglu_ffn=swiglu,
    )
    reason = f"names; heads of {_HEAD_DIM} channels assumed; positions for {table_size} pixels"
    return [Detected("dinov2", layout, inner, config, shapes(config), reason)]
