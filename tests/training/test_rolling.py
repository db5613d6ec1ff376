"""The rolling evaluation: the same figures each time and on any devices, and what they are figures of."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training import rolling
from dtc_jax.training.initial import initial_params
from dtc_jax.training.objective import make_objective
from dtc_jax.training.placement import put
from dtc_jax.training.rolling import make_evaluation, metrics_of
from dtc_jax.training.sharding import make_mesh, tree_sharding
from dtc_jax.weights.model_folder import flatten_params
from tests.training.small_run import CONFIG, pictures


def _with(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def _held_out(config: ExperimentConfig, count: int) -> dict[str, np.ndarray]:
    """Stands in for the data set."""
    parts = [pictures(100 + i) for i in range(count // 2)]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("scene", "mask")}


def test_losses_of_held_out_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "evaluation_batch", _held_out)
    compiled: list[Any] = []
    jit = jax.jit

    def remember(*arguments: Any, **options: Any) -> Any:
        compiled.append(jit(*arguments, **options))
        return compiled[-1]

    config = _with(CONFIG, batch_size=8, evaluate_every=1, evaluate_count=12)
    params = flatten_params(initial_params(config, jax.random.key(0)))
    mesh = make_mesh(4)
    average = {path: put(leaf, tree_sharding(mesh, {path: leaf}, 1)[path]) for path, leaf in params.items()}
    monkeypatch.setattr(rolling.jax, "jit", remember)
    evaluate = make_evaluation(config, mesh)
    monkeypatch.setattr(rolling.jax, "jit", jit)
    (compiled_scores,) = compiled
    first = evaluate(average, {})
    assert evaluate(average, {}) == first
    assert compiled_scores._cache_size() == 1

    # Twelve, rounded up to two batches of eight; by hand on one device.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.training.seed), 2), 0)
    objective = jax.jit(make_objective(config))
    batch = _held_out(config, 16)
    losses = []
    for start in (0, 8):
        part = {name: values[start : start + 8] for name, values in batch.items()}
        part["index"] = np.arange(start, start + 8, dtype=np.uint32)
        nested: dict[str, Any] = initial_params(config, jax.random.key(0))
        losses.append(float(objective(nested, part, key, jnp.int32(0))[0]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(first["loss"], np.mean(losses), rtol=1e-5)


def test_pictures_are_compared_inside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that knows the truth but for a fifth of the range, and paints nonsense outside the mask."""

    def generate(params: Any, batch: Any, keys: Any, scale: Any, settings: Any) -> jax.Array:
        truth = batch["scene"].astype(jnp.float32) / 255
        wrong = jnp.where(truth > 0.5, truth - 0.2, truth + 0.2)
        return jnp.where(batch["mask"] > 0, wrong, 1 - truth)

    monkeypatch.setattr(rolling, "generate", generate)
    monkeypatch.setattr(rolling, "evaluation_batch", _held_out)
    monkeypatch.setattr(rolling, "make_objective", lambda config: lambda *_: (0.0, {"loss": jnp.float32(1)}))
    config = dataclasses.replace(_with(CONFIG, batch_size=4, evaluate_count=4, trainable="."), stage="diffusion")
    scores = make_evaluation(config, make_mesh(1, jax.devices()[:4]))({}, {})
    np.testing.assert_allclose(scores["psnr"], -20 * np.log10(0.2), atol=0.01)
    assert 0 < scores["ssim"] < 0.95 and scores["loss"] == 1


def test_what_checkpoints_can_be_compared_by() -> None:
    config = _with(CONFIG, evaluate_every=1, checkpoint_every=1, keep_best=1, best_metric="ssim")
    assert "ssim" not in metrics_of(config)
    with pytest.raises(ConfigError, match="best_metric = ssim is no figure of the autoencoder stage"):
        make_evaluation(config, make_mesh(1))
