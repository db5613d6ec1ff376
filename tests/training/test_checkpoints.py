"""Checkpoints: every array comes back bit for bit, into whatever shardings are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax.config import ConfigError, ExperimentConfig, OptimizerConfig
from dtc_jax.training.checkpoints import Checkpoints, abstract_state
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.sharding import make_mesh, tree_sharding
from dtc_jax.training.step import TrainState, init_state

CONFIG = ExperimentConfig()


def make_state(seed: int = 0, width: int = 8, name: str = "unet/a") -> TrainState:
    """A state in which no two arrays are equal."""
    params = {f"{name}/kernel": np.zeros((3, width), np.float32), f"{name}/bias": np.zeros(width, np.float32)}
    random = np.random.default_rng(seed)
    state = init_state(params, make_optimizer(OptimizerConfig(), 10))
    return jax.tree.map(lambda leaf: jnp.asarray(9 * random.normal(size=leaf.shape)).astype(leaf.dtype), state)


def place(state: TrainState, fsdp: int) -> TrainState:
    mesh = make_mesh(fsdp, jax.devices()[:fsdp])
    return jax.device_put(state, tree_sharding(mesh, state, min_size=1))


def shardings(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def assert_equal(one: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, first), second in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second, err_msg=str(path))


@pytest.mark.parametrize("fsdp", [1, 4])
def test_round_trip(fsdp: int, tmp_path: Path) -> None:
    state, target = place(make_state(), 2), place(make_state(1), fsdp)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() is None
    checkpoints.save(state, CONFIG, 3)
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() == 3
    restored = checkpoints.restore(abstract_state(target, shardings(target)), 3)
    assert_equal(restored, state)
    assert shardings(restored) == shardings(target)
    checkpoints.close()


def test_without_a_moving_average(tmp_path: Path) -> None:
    state, target = (place(make_state(seed)._replace(ema={}), 1) for seed in range(2))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, CONFIG, 1)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert_equal(checkpoints.restore(abstract_state(target, shardings(target)), 1), state)
    checkpoints.close()


def test_checkpoint_from_before_the_counters(tmp_path: Path) -> None:
    state = place(make_state(), 1)

    class Older:
        def _asdict(self) -> dict[str, Any]:
            return {name: value for name, value in state._asdict().items() if not name.startswith("nonfinite")}

    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(Older(), CONFIG, 1)  # type: ignore[arg-type]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    restored = checkpoints.restore(abstract_state(state, shardings(state)), 1)
    assert_equal(restored, state._replace(nonfinite_steps=jnp.int32(0), nonfinite_in_a_row=jnp.int32(0)))
    checkpoints.close()


def test_donated_buffers_do_not_reach_the_disk(tmp_path: Path) -> None:
    """The copy to disk goes on while the next step overwrites the state."""
    state = place(make_state(), 1)
    expected = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, CONFIG, 1)
    state = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(state)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert_equal(checkpoints.restore(abstract_state(state, shardings(state)), 1), expected)
    checkpoints.close()


def test_the_newest_are_kept_with_their_configuration(tmp_path: Path) -> None:
    state = place(make_state(), 1)
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 3):
        checkpoints.save(state, CONFIG, step)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}
    (stored,) = (tmp_path / "checkpoints" / "3" / "config").glob("*metadata*")
    assert json.loads(stored.read_text())["name"] == CONFIG.name


def test_half_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    state = place(make_state(), 1)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state, CONFIG, 1)
    checkpoints.close()
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() == 1
    checkpoints.save(state, CONFIG, 2)
    checkpoints.close()
    assert Checkpoints(tmp_path, keep=2).latest_step() == 2


def test_checkpoint_of_other_parameters(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(place(make_state(), 1), CONFIG, 1)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, keep=2)
    for target, path in [(make_state(width=16), "unet/a/bias"), (make_state(name="unet/b"), "unet/a/bias")]:
        target = place(target, 1)
        with pytest.raises(ConfigError, match=rf"1: does not fit this configuration \({path}\); use another --run-dir"):
            checkpoints.restore(abstract_state(target, shardings(target)), 1)
    checkpoints.close()
