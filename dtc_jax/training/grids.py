"""Sample grids: what the moving average paints for held-out products, as a PNG beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from PIL import Image

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.images import InputError
from dtc_jax.data.sheets import contact_sheet
from dtc_jax.inference.generate import generate, image_keys
from dtc_jax.inference.settings import sampler_settings
from dtc_jax.training.files import written_beside
from dtc_jax.training.sharding import replicated
from dtc_jax.training.source import evaluation_batch

COLUMNS = ("scene", "mask", "reference", "hint", "result", "truth")
"""Reference and hint are left out where there are none."""


@lru_cache(maxsize=1)
def grid_batch(config: ExperimentConfig) -> dict[str, np.ndarray]:
    """What a grid shows, drawn once."""
    return evaluation_batch(config, config.training.sample_count)


@lru_cache(maxsize=1)
def compiled_sampler(mesh: Mesh) -> Callable[..., Array]:
    """The sampler with a whole copy of its result on every device, so that any process can write it."""
    return jax.jit(generate, static_argnames="settings", out_shardings=replicated(mesh))


def check_sampling(config: ExperimentConfig) -> None:
    """Refuse settings that no sampler can be made of, at the start and not when the first grid is drawn.

    Raises:
        ConfigError: the setting, and what it may be.
    """
    training = config.training
    if config.stage != "diffusion" or not (training.sample_every or training.evaluate_every):
        return
    try:
        sampler_settings(config)
    except InputError as error:
        raise ConfigError(f"sampling.{error}") from None


def write_sample_grid(
    config: ExperimentConfig, params: PyTree, path: Path, mesh: Mesh, write: bool = True
) -> Image.Image | None:
    """Sample held-out products with `params` and write scene, mask, reference, hint, result and truth side by side.

    Every process must call it (sampling is a computation over all devices); the one with `write` writes the file, and
    gets the picture.
    """
    batch = grid_batch(config)
    keys = image_keys(config.training.seed, config.training.sample_count)
    sampler = compiled_sampler(mesh)
    result = sampler(params, batch, keys, config.sampling.guidance_scale, settings=sampler_settings(config))
    if not write:
        return None
    truth, mask = batch["scene"], batch["mask"]
    images = np.asarray(result.addressable_data(0))
    painted = np.where(mask, np.round(images * 255).astype(np.uint8), truth)
    greyed = np.where(mask, np.uint8(128), truth)
    pictures = {**batch, "scene": greyed, "mask": mask[..., 0] * np.uint8(255), "result": painted, "truth": truth}
    shown = [name for name in COLUMNS if name in pictures]
    rows = list(zip(*(pictures[name] for name in shown), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = contact_sheet(rows, shown)
    with written_beside(path) as scratch:
        grid.save(scratch)
    return grid
