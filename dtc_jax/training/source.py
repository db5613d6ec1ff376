"""Where batches come from: a function of the step, so that the data position is an integer.

A `BatchSource` returns the global batch of a step as arrays sharded over the mesh; each process fills its own rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree, UInt8

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.hints import canny_edges, stitched_scene
from dtc_jax.data.pipeline import RecordReader, evaluation_records, stack
from dtc_jax.data.procedural import sample_batch
from dtc_jax.data.product import ProductPhotos
from dtc_jax.training.broken_records import OnBroken, log_broken
from dtc_jax.training.product_source import ProductSource
from dtc_jax.training.record_source import RecordSource
from dtc_jax.training.sharding import BATCH_SPEC


class BatchSource(Protocol):
    """Batches by step: any step first, then the following ones, each once."""

    def __call__(self, step: int) -> PyTree:
        """The global batch of a step."""

    def close(self) -> None:
        """Stop what works in the background."""


def make_source(config: ExperimentConfig, mesh: Mesh, on_broken: OnBroken = log_broken) -> BatchSource:
    """The source that `config.data` names; to be closed.

    Args:
        config: The experiment.
        mesh: What the batch is sharded over.
        on_broken: Told of each record that cannot be used, once, from a thread.

    Raises:
        ConfigError: the batch cannot be split over the devices, or there is no such data set.
    """
    batch_size = config.training.batch_size
    if batch_size % mesh.size:
        raise ConfigError(
            f"training.batch_size = {batch_size} must be a multiple of the number of devices, {mesh.size}"
        )
    if config.data.kind == "records":
        if config.stage == "vgg":
            raise ConfigError(
                "data.kind = records: records hold none of the labels that stage vgg learns; take data.kind procedural"
            )
        return RecordSource(config, mesh, on_broken)
    if config.data.kind == "product":
        return ProductSource(config, mesh)
    if config.data.cached:
        raise ConfigError("data.cached: the generated world has no cache; take data.kind records and its data.path")
    return GeneratedSource(config, mesh)


class GeneratedSource:
    """The generated world needs no files: every device draws its own rows of the batch."""

    def __init__(self, config: ExperimentConfig, mesh: Mesh) -> None:
        """
        Args:
            config: The experiment.
            mesh: Of a size that divides the batch.
        """
        self._batch_size = config.training.batch_size
        local_size = self._batch_size // mesh.size

        @jax.jit
        @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=BATCH_SPEC, check_vma=False)
        def generate(start: Array) -> PyTree:
            position = jax.lax.axis_index(mesh.axis_names).astype(jnp.uint32)
            batch = sample_batch(
                config.data.seed,
                start + position * jnp.uint32(local_size),
                local_size,
                size=config.model.image_size,
                reference_size=config.model.reference_size,
                fit=config.model.hint.fit,
                trim=config.model.hint.trim,
                region=config.model.hint.region,
            )
            return with_scene(batch, config)

        self._generate = generate
        self._edges = config.model.hint.kind == "canny"

    def __call__(self, step: int) -> PyTree:
        """The global batch of any step."""
        # The global order is endless but counted in 32 bits: it starts again after four thousand million samples.
        batch = self._generate(np.uint32((step * self._batch_size) % 2**32))
        return {**batch, "hint": edges_on_host(batch["hint"])} if self._edges else batch

    def close(self) -> None:
        """Nothing works in the background."""


def with_scene(batch: dict[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """A generated batch with the scene in its hints, where the experiment's are that."""
    if config.model.hint.kind != "latent":
        return batch
    return {**batch, "hint": stitched_scene(batch["hint"], batch["scene"], batch["mask"][..., 0])}


def edges_on_host(hints: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Canny's edges of hints that are on devices; each process makes those of its own."""
    pieces = [
        jax.device_put(np.stack([canny_edges(hint) for hint in jax.device_get(shard.data)]), shard.device)
        for shard in hints.addressable_shards
    ]
    return jax.make_array_from_single_device_arrays(hints.shape, hints.sharding, pieces)


def evaluation_batch(config: ExperimentConfig, count: int) -> dict[str, Any]:
    """The first `count` held-out samples, the same on every process and at every call.

    Of a data set of records they are the first of `data.evaluation_split`, not augmented, fine and box masks in turn; a
    split with fewer starts again. Of a product there is nothing to hold out but masks: they are its photos in turn.

    Returns:
        Host arrays `scene`, `mask`, `reference`, `hint` [count, ...], uint8; for the stage `vgg` its `labels`; of a
        product `scene`, `mask` and `prior`, 0.

    Raises:
        ConfigError: no such data set or split.
    """
    if config.data.kind == "product":
        photos = ProductPhotos(config.data, config.model.image_size, prior=False)
        samples = [photos.evaluation_sample(number) for number in range(count)]
        return {name: np.stack([sample[name] for sample in samples]) for name in ("scene", "mask", "prior")}
    names = ("scene", "mask", "reference", "hint", *(["labels"] if config.stage == "vgg" else []))
    if config.data.kind == "records":
        batch, broken = evaluation_records(config.data, config.model, count)
        for record in broken:
            log_broken(record)
        return {name: batch[name] for name in names}

    # One compiled function: every operation by itself would compile for minutes.
    @jax.jit
    def draw() -> dict[str, Any]:
        batch = sample_batch(
            config.data.seed,
            0,
            count,
            size=config.model.image_size,
            reference_size=config.model.reference_size,
            held_out=True,
            fit=config.model.hint.fit,
            trim=config.model.hint.trim,
            region=config.model.hint.region,
        )
        batch = with_scene(batch, config)
        return {name: batch[name] for name in names}

    batch = jax.device_get(draw())
    if config.model.hint.kind == "canny":
        batch["hint"] = np.stack([canny_edges(hint) for hint in batch["hint"]])
    return batch


def training_scenes(config: ExperimentConfig, count: int) -> UInt8[Array, "b h w 3"]:
    """The scenes of the first `count` training samples."""
    size = config.model.image_size
    if config.data.kind == "records":
        reader = RecordReader(config.data, config.model)
        return jnp.asarray(stack([reader.training_sample(place) for place in range(count)])["scene"])
    return jax.jit(lambda: sample_batch(config.data.seed, 0, count, size, size)["scene"])()
