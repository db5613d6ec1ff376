"""Where batches come from: a function of the step, so that the data position is an integer.

A `BatchSource` returns the global batch of a step as arrays sharded over the mesh; each process fills its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.procedural import sample_batch
from dtc_jax.training.sharding import BATCH_SPEC

BatchSource = Callable[[int], PyTree]


def make_source(config: ExperimentConfig, mesh: Mesh) -> BatchSource:
    """The source that `config.data` names.

    Raises:
        ConfigError: the batch cannot be split over the devices.
    """
    batch_size = config.training.batch_size
    if batch_size % mesh.size:
        raise ConfigError(
            f"training.batch_size = {batch_size} must be a multiple of the number of devices, {mesh.size}"
        )
    local_size = batch_size // mesh.size

    # The generated world needs no files: every device draws its own rows of the batch.
    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=BATCH_SPEC, check_vma=False)
    def generate(start: Array) -> PyTree:
        position = jax.lax.axis_index(mesh.axis_names).astype(jnp.uint32)
        return sample_batch(
            config.data.seed,
            start + position * jnp.uint32(local_size),
            local_size,
            size=config.model.image_size,
            reference_size=config.model.reference_encoder.image_size,
            fit=config.model.hint.fit,
            trim=config.model.hint.trim,
            region=config.model.hint.region,
        )

    def batch_of(step: int) -> PyTree:
        # The global order is endless but counted in 32 bits: it starts again after four thousand million samples.
        return generate(np.uint32((step * batch_size) % 2**32))

    return batch_of
