"""The shapes and types of what a train step takes, without a value of any of it: for counting and for planning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.data.procedural import sample_batch
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.classifier import init_heads
from dtc_jax.training.initial import needed_networks
from dtc_jax.training.params import FlatParams, cast_frozen, split_trainable
from dtc_jax.weights.model_folder import flatten_params


def abstract_params(config: ExperimentConfig) -> tuple[FlatParams, FlatParams]:
    """(trainable, frozen) parameters of the experiment's stage, flat, as `jax.ShapeDtypeStruct`.

    Raises:
        ConfigError: `training.trainable` matches nothing.
    """
    model = DiffuseToChoose(config.model)
    shapes: dict[str, Any] = model.shapes()
    wanted = needed_networks(config)
    if "heads" in wanted:
        heads = init_heads(config.model, jax.random.key(0))
        shapes["heads"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), heads)
    if "taesd" in wanted:
        shapes["taesd"] = model.taesd_shapes()
    flat = flatten_params({name: shapes[name] for name in wanted if name in shapes})
    trainable, frozen = split_trainable(flat, config.training.trainable)
    dtype = config.training.frozen_dtype
    return trainable, jax.eval_shape(
        lambda leaves: {path: cast_frozen(leaf, dtype) for path, leaf in leaves.items()}, frozen
    )


def abstract_batch(config: ExperimentConfig, batch_size: int) -> PyTree:
    """A global batch of `batch_size` samples as `jax.ShapeDtypeStruct`, with what `data.cached` brings.

    Images and mask are uint8, the index is uint32, cached tokens and latents are float32.
    """
    arrays: dict[str, tuple[tuple[int, ...], Any]]
    model = config.model
    size = model.image_size
    if model.prompted:
        arrays = {
            "scene": ((size, size, 3), jnp.uint8),
            "mask": ((size, size, 1), jnp.uint8),
            "prior": ((), jnp.uint8),
            "index": ((), jnp.uint32),
        }
        return _abstract(arrays, batch_size)
    reference_size = model.reference_size
    if config.stage == "vgg":
        return jax.eval_shape(lambda: sample_batch(0, 0, batch_size, size=size, reference_size=reference_size))
    latent_size = size // model.vae.factor
    latents = ((latent_size, latent_size, model.vae.latent_channels), jnp.float32)
    tokens = ((model.num_reference_tokens, model.reference_encoder.hidden_size), jnp.float32)
    arrays = {
        "scene": ((size, size, 3), jnp.uint8),
        "mask": ((size, size, 1), jnp.uint8),
        "reference": ((reference_size, reference_size, 3), jnp.uint8),
        "hint": ((size, size, 3), jnp.uint8),
        "index": ((), jnp.uint32),
    }
    if "tokens" in config.data.cached:
        arrays["tokens"] = tokens
    if "latents" in config.data.cached:
        arrays |= {name: latents for name in ("latent_mean", "latent_logvar", "masked_latents")}
    return _abstract(arrays, batch_size)


def _abstract(arrays: Mapping[str, tuple[tuple[int, ...], Any]], batch_size: int) -> PyTree:
    return {name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in arrays.items()}
