"""The shapes and types of what a train step takes, without a value of any of it: for counting and for planning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dtc_jax.config import ExperimentConfig
from dtc_jax.data.procedural import sample_batch
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.classifier import init_heads
from dtc_jax.training.initial import STAGE_NETWORKS
from dtc_jax.training.params import FlatParams, split_trainable
from dtc_jax.weights.model_folder import flatten_params


def abstract_params(config: ExperimentConfig) -> tuple[FlatParams, FlatParams]:
    """(trainable, frozen) parameters of the experiment's stage, flat, as `jax.ShapeDtypeStruct`.

    Raises:
        ConfigError: `training.trainable` matches nothing.
    """
    shapes = DiffuseToChoose(config.model).shapes()
    if config.stage == "vgg":
        heads = init_heads(config.model, jax.random.key(0))
        shapes["heads"] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), heads)
    wanted = {name: shapes[name] for name in STAGE_NETWORKS[config.stage] if name in shapes}
    return split_trainable(flatten_params(wanted), config.training.trainable)


def abstract_batch(config: ExperimentConfig, batch_size: int) -> PyTree:
    """A global batch of `batch_size` samples as `jax.ShapeDtypeStruct`: images uint8, mask uint8, index uint32."""
    if config.stage == "vgg":
        size, reference_size = config.model.image_size, config.model.reference_encoder.image_size
        return jax.eval_shape(lambda: sample_batch(0, 0, batch_size, size=size, reference_size=reference_size))
    size, reference_size = config.model.image_size, config.model.reference_encoder.image_size
    return {
        "scene": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((batch_size, size, size, 1), jnp.uint8),
        "reference": jax.ShapeDtypeStruct((batch_size, reference_size, reference_size, 3), jnp.uint8),
        "hint": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.uint32),
    }
