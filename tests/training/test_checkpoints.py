"""Checkpoints: every array comes back bit for bit, into whatever shardings are asked for."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dtc_jax.config import ConfigError, DataConfig, ExperimentConfig, OptimizerConfig, TrainingConfig
from dtc_jax.training.checkpoints import CheckpointError, Checkpoints, abstract_state, reason
from dtc_jax.training.files import remove_unfinished_checkpoints
from dtc_jax.training.optimizer import make_optimizer
from dtc_jax.training.sharding import make_mesh, tree_sharding
from dtc_jax.training.step import TrainState, init_state
from tests.training.small_disk import small_disk

# Reads and writes that go on after the first that failed find their event loop closed: see `quiet_orbax`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

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


def test_half_a_checkpoint_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something still writes into it: that does not stop the saves of other steps."""
    half = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    rmtree = shutil.rmtree

    def busy(path: Any, ignore_errors: bool = False, **options: Any) -> None:
        if Path(path) != half:
            rmtree(path, ignore_errors, **options)
        elif not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", "state")

    monkeypatch.setattr("shutil.rmtree", busy)
    monkeypatch.setattr("dtc_jax.training.files.time", types.SimpleNamespace(sleep=lambda seconds: None))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(place(make_state(), 1), CONFIG, 2)
    checkpoints.close()
    assert (tmp_path / "checkpoints" / "2").is_dir() and half.is_dir()


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


def target_of(state: TrainState) -> TrainState:
    return abstract_state(state, shardings(state))


def save_steps(folder: Path, *steps: int) -> TrainState:
    state = place(make_state(), 1)
    checkpoints = Checkpoints(folder, keep=5)
    for step in steps:
        checkpoints.save(state._replace(step=jnp.int32(step)), CONFIG, step)
    checkpoints.close()
    return state


@pytest.mark.parametrize(("metric", "best"), [("loss", 2), ("ssim", 3)])
def test_the_best_are_kept_beside_the_newest(metric: str, best: int, tmp_path: Path) -> None:
    state = place(make_state(), 1)
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1, best_metric=metric)
    scores = {2: {"loss": 0.5, "ssim": 0.1}, 3: {"loss": 0.7, "ssim": 0.9}, 4: {"loss": 0.6, "ssim": 0.2}}
    scores[5] = {"loss": float("nan"), "ssim": float("nan")}
    for step in range(1, 7):
        checkpoints.save(state, CONFIG, step, scores.get(step))
    assert checkpoints.best_step() == best
    checkpoints.close()
    # Step 1 and 6 were not evaluated: they do not compete. Scores outlive the process.
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1, best_metric=metric)
    assert checkpoints.steps() == [best, 6] and checkpoints.best_step() == best
    checkpoints.save(state, CONFIG, 7, {"loss": 0.55, "ssim": 0.3})
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {str(best), "7"}


def test_what_was_not_evaluated_is_not_among_the_best(tmp_path: Path) -> None:
    state = place(make_state(), 1)
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    checkpoints.save(state, CONFIG, 1)
    checkpoints.save(state, CONFIG, 2, {"loss": float("nan")})
    checkpoints.save(state, CONFIG, 3)
    assert checkpoints.best_step() is None
    checkpoints.close()
    # Nor do they fill places that are free, and nobody is pushed out by them.
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=2)
    assert checkpoints.steps() == [3] and checkpoints.best_step() is None
    for step in range(4, 7):
        checkpoints.save(state, CONFIG, step, {"loss": 0.5} if step == 4 else None)
    assert checkpoints.best_step() == 4
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6"}


def test_data_position(tmp_path: Path) -> None:
    state = save_steps(tmp_path, 3)
    stored = json.loads((tmp_path / "checkpoints" / "3" / "data" / "metadata").read_text())
    assert stored == {"next_index": 3 * CONFIG.training.batch_size, "kind": "procedural", "seed": 0}
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.restore(target_of(state), 3, CONFIG)
    for config, part in [
        (ExperimentConfig(data=DataConfig(seed=4)), "seed was 0, now 4"),
        (ExperimentConfig(training=TrainingConfig(batch_size=32)), "next_index was 192, now 96"),
    ]:
        with pytest.raises(ConfigError, match=rf"checkpoints/3: was written with other data \({part}\)"):
            checkpoints.restore_newest(target_of(state), config)
    checkpoints.close()


def _each_file(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for file in (folder / "state").rglob("d/*"):
            file.write_bytes(change(file.read_bytes()))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda folder: [shutil.rmtree(path) for path in folder.iterdir() if path.is_dir()] and None,
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "cut off": _each_file(lambda data: data[: len(data) // 2]),
    "one bit": _each_file(lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]),
    "no index": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_named_and_the_one_before_taken(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = save_steps(tmp_path, 1, 2, 3)
    DAMAGES[damage](tmp_path / "checkpoints" / "3")
    checkpoints = Checkpoints(tmp_path, keep=5)
    restored, step = checkpoints.restore_newest(target_of(state), CONFIG)
    assert step == 2
    assert_equal(restored, state._replace(step=jnp.int32(2)))
    (message,) = [message for message in caplog.messages if "cannot be read" in message]
    assert str(tmp_path / "checkpoints" / "3") in message and "going on from step 2" in message
    assert (tmp_path / "damaged" / "3").is_dir()
    # It is not in the way of the same step, made again.
    checkpoints.save(state, CONFIG, 3)
    checkpoints.close()
    assert_equal(Checkpoints(tmp_path, keep=5).restore(target_of(state), 3), state)


def test_where_nothing_can_be_read_nothing_is_moved(tmp_path: Path) -> None:
    state = save_steps(tmp_path, 1, 2)
    for step in ("1", "2"):
        DAMAGES["cut off"](tmp_path / "checkpoints" / step)
    checkpoints = Checkpoints(tmp_path, keep=5)
    with pytest.raises(CheckpointError, match=r"checkpoints/2: cannot be read .* no other checkpoint of this run"):
        checkpoints.restore_newest(target_of(state), CONFIG)
    checkpoints.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
    assert not (tmp_path / "damaged").exists()


def test_older_checkpoints_lack_what_is_new(tmp_path: Path) -> None:
    """No data position, no counters, no average: those of the first version, and of a run without an average."""
    state = place(make_state(), 2)
    old = {name: getattr(state, name) for name in ("step", "params", "opt_state")}
    with ocp.CheckpointManager((tmp_path / "checkpoints").absolute()) as manager:
        manager.save(4, args=ocp.args.Composite(state=ocp.args.StandardSave(old)))
    checkpoints = Checkpoints(tmp_path, keep=5)
    restored, step = checkpoints.restore_newest(target_of(state), CONFIG)
    checkpoints.close()
    assert step == 4
    zero = jnp.int32(0)
    assert_equal(restored, state._replace(ema=state.params, nonfinite_steps=zero, nonfinite_in_a_row=zero))
    assert shardings(restored) == shardings(state)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """Files may not grow beyond a size that the arrays need: the system refuses as it does on a full disk."""
    state = save_steps(tmp_path, 1)
    larger = place(make_state(width=20_000), 1)
    checkpoints = Checkpoints(tmp_path, keep=1)
    error = r"checkpoints: a checkpoint could not be written \(File too large\); step 1 is the newest that is complete"
    with small_disk(20_000), pytest.raises(CheckpointError, match=error) as caught:
        checkpoints.save(larger, CONFIG, 2)
        checkpoints.close()
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["1"]
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert_equal(checkpoints.restore(target_of(state), 1), state._replace(step=jnp.int32(1)))
    checkpoints.close()


@pytest.mark.parametrize("details", [("os_error_code='28'", "spec='{}'"), ("spec='{}'", "os_error_code='28'")])
def test_the_system_s_reason_in_whatever_order_the_library_tells_it(details: tuple[str, str]) -> None:
    first, second = details
    error = ValueError(f"OUT_OF_RANGE: Failed to write 54564 bytes to file 20: words of its own [{first}] [{second}]")
    assert reason(error) == os.strerror(28)


def test_what_a_failed_save_still_writes_is_removed(tmp_path: Path) -> None:
    """Its threads go on for a while; a run that starts meanwhile in the same process saves all the same."""
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp" / "state"
    unfinished.mkdir(parents=True)

    def write() -> None:
        for number in range(1000):
            with contextlib.suppress(FileNotFoundError):
                (unfinished / str(number)).write_bytes(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    remove_unfinished_checkpoints(tmp_path / "checkpoints", attempts=20)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    writer.join()
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make_state(), CONFIG, 4)
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
