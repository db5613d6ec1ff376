"""Batches of one product's photos and of pictures of its class, on the mesh."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.order import MAX_PLACES
from dtc_jax.data.product import ProductPhotos
from dtc_jax.training.record_source import local_rows, put_rows
from dtc_jax.training.sharding import batch_sharding


def check_halves(config: ExperimentConfig) -> None:
    """Refuse a batch of which half cannot be pictures of the class.

    Raises:
        ConfigError: its size is odd.
    """
    size = config.training.batch_size
    if config.loss.prior_weight > 0 and size % 2:
        raise ConfigError(
            f"training.batch_size = {size} must be even: half of a batch are pictures of the class "
            "(loss.prior_weight = 0 leaves them out)"
        )


class ProductSource:
    """A `BatchSource` over a few photos, which are in memory: nothing works in the background."""

    def __init__(self, config: ExperimentConfig, mesh: Mesh) -> None:
        """
        Args:
            config: The experiment; `data.class_images` names what `prepare_product` made, if nothing else.
            mesh: What the batch is sharded over.

        Raises:
            ConfigError: photos or pictures are missing or cannot be read; or a batch that cannot be halved, or a run
                that draws more samples than places can be counted.
        """
        size, steps, prior = config.training.batch_size, config.training.steps, config.loss.prior_weight > 0
        if config.data.cached:
            raise ConfigError("data.cached: photos of a product have no cache; leave it out")
        check_halves(config)
        if steps * size > MAX_PLACES:
            raise ConfigError(f"training.steps = {steps} times training.batch_size = {size} is more than {MAX_PLACES}")
        self._photos = ProductPhotos(config.data, config.model.image_size, prior)
        self._batch_size, self._sharding = size, batch_sharding(mesh)
        self._rows = local_rows(self._sharding, size)

    def __call__(self, step: int) -> PyTree:
        """The global batch of any step."""
        samples = [self._photos.sample(step * self._batch_size + row) for row in self._rows]
        batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        return put_rows(batch, self._rows, self._batch_size, self._sharding)

    def close(self) -> None:
        """Nothing works in the background."""
