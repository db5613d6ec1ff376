"""The rolling evaluation: how the moving average does on held-out samples, the same ones and the same noise each time.

Losses are the objective's, with no condition dropped; the diffusion stage also samples, and compares what it paints
with the truth inside the mask. Everything is compiled once, and computed on all devices of all processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.evaluation.metrics import masked_psnr, masked_ssim, paste_back
from dtc_jax.inference.generate import generate
from dtc_jax.inference.settings import sampler_settings
from dtc_jax.training.objective import Batch, make_objective
from dtc_jax.training.params import FlatParams
from dtc_jax.training.placement import put
from dtc_jax.training.sharding import batch_sharding, replicated
from dtc_jax.training.source import evaluation_batch
from dtc_jax.weights.model_folder import unflatten_params

Evaluate = Callable[[FlatParams, FlatParams], dict[str, float]]
"""`(average, frozen) -> scores`; every process must call it, and gets the same figures."""


def make_evaluation(config: ExperimentConfig, mesh: Mesh) -> Evaluate:
    """The evaluation of `training.evaluate_count` held-out samples, rounded up to whole batches.

    The figures are means over them: `loss` and its parts; for the diffusion stage `psnr` in dB and `ssim` inside the
    mask, of samples with the configuration's own solver and guidance.

    Raises:
        ConfigError: `training.best_metric` is not among the stage's figures, or networks are left out that it needs.
    """
    training = config.training
    if config.data.cached:
        raise ConfigError(
            f"training.evaluate_every = {training.evaluate_every} needs the networks that data.cached leaves out; "
            "set it to 0"
        )
    if training.keep_best and training.best_metric not in metrics_of(config):
        raise ConfigError(
            f"training.best_metric = {training.best_metric} is no figure of the {config.stage} stage; "
            f"choose one of {', '.join(metrics_of(config))}"
        )
    no_dropout = dataclasses.replace(config.loss, drop_tokens=0.0, drop_hint=0.0, drop_both=0.0)
    objective = make_objective(dataclasses.replace(config, loss=no_dropout))
    key = jax.random.fold_in(jax.random.key(training.seed), 2)
    settings = sampler_settings(config, dtype=jnp.dtype(training.compute_dtype))

    def scores(average: FlatParams, frozen: FlatParams, batch: Batch) -> dict[str, Float[Array, ""]]:
        params = unflatten_params({**frozen, **average})
        _, found = objective(params, batch, jax.random.fold_in(key, 0), jnp.int32(0))
        if config.stage == "diffusion":
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, 1), batch["index"])
            images = generate(params, batch, keys, config.sampling.guidance_scale, settings)
            truth, mask = batch["scene"].astype(jnp.float32) / 255, batch["mask"].astype(jnp.float32)
            painted = paste_back(jnp.round(images * 255) / 255, truth, mask)
            found |= {"psnr": jnp.mean(masked_psnr(painted, truth, mask))}
            found |= {"ssim": jnp.mean(masked_ssim(painted, truth, mask))}
        return found

    compiled = jax.jit(scores, out_shardings=replicated(mesh))
    batches: list[PyTree] = []

    def evaluate(average: FlatParams, frozen: FlatParams) -> dict[str, float]:
        if not batches:
            batches.extend(held_out_batches(config))
        # One batch at a time on the devices; all are dispatched before the first figure is read.
        found = [compiled(average, frozen, put(batch, batch_sharding(mesh))) for batch in batches]
        return {name: float(np.mean([float(part[name]) for part in found])) for name in found[0]}

    return evaluate


def metrics_of(config: ExperimentConfig) -> tuple[str, ...]:
    """The figures by which the stage's checkpoints can be compared."""
    return {"diffusion": ("loss", "psnr", "ssim"), "autoencoder": ("loss", "psnr"), "vgg": ("loss",)}[config.stage]


def held_out_batches(config: ExperimentConfig) -> list[PyTree]:
    """Held-out samples as batches of the training's size, on the host."""
    size = config.training.batch_size
    count = -(-config.training.evaluate_count // size)
    samples = {**evaluation_batch(config, count * size), "index": np.arange(count * size, dtype=np.uint32)}
    return [jax.tree.map(lambda leaf: leaf[i * size : (i + 1) * size], samples) for i in range(count)]  # noqa: B023
