"""A run folder belongs to one run: what starts in it, what it starts from, and what is never removed."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import jax
import pytest

from dtc_jax import presets
from dtc_jax.config import ConfigError, ExperimentConfig, SamplingConfig
from dtc_jax.training.grids import check_sampling
from dtc_jax.training.initial import initial_params
from dtc_jax.training.run_directory import only_run, starting_folders
from dtc_jax.training.stopping import Stopped
from dtc_jax.weights.model_folder import load_model_folder, save_model_folder
from tests.training.small_run import CONFIG, Source, same, train, use


class Interrupted(Exception):
    """Stands for a run's end from outside."""


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    return use(Source(), monkeypatch)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return save_model_folder(tmp_path / "earlier", CONFIG, initial_params(CONFIG, jax.random.key(7)))


def interrupt_at_the_start(source: Source, run_dir: Path, *init_from: Path) -> None:
    def interrupt(step: int) -> None:
        raise Interrupted

    source.before = interrupt
    with pytest.raises(Interrupted):
        train(CONFIG, run_dir, *init_from)
    source.before = lambda step: None


def test_a_run_without_checkpoints_starts_from_where_it_did(source: Source, earlier: Path, tmp_path: Path) -> None:
    expected = train(CONFIG, tmp_path / "whole", earlier)
    interrupt_at_the_start(source, tmp_path / "parts", earlier)
    assert starting_folders(tmp_path / "parts") == [earlier]
    assert same(train(CONFIG, tmp_path / "parts"), expected)
    # From its first checkpoint on the run has all itself.
    assert starting_folders(tmp_path / "parts") == []


def test_a_folder_that_it_started_from_must_still_be_there(source: Source, earlier: Path, tmp_path: Path) -> None:
    interrupt_at_the_start(source, tmp_path / "run", earlier)
    earlier.rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match=f"{earlier}: "):
        train(CONFIG, tmp_path / "run")
    # What is named now counts, not what was named before.
    train(CONFIG, tmp_path / "run", tmp_path / "elsewhere")


def test_a_start_that_came_to_nothing_binds_nobody(source: Source, tmp_path: Path) -> None:
    interrupt_at_the_start(source, tmp_path / "run")
    other = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, seed=5))
    train(other, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"was started with training\.seed = 5, not 0"):
        train(CONFIG, tmp_path / "run")


def test_a_model_that_is_not_the_runs_own_stays(source: Source, earlier: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run" / "model"
    save_model_folder(mine, CONFIG, load_model_folder(earlier)[1])
    with pytest.raises(ConfigError, match=r"run/model: is there, without checkpoints .*; use another --run-dir"):
        train(CONFIG, tmp_path / "run", mine)
    assert same(load_model_folder(mine)[1], load_model_folder(earlier)[1])
    assert not (tmp_path / "run" / "config.json").exists()


def test_steps_that_are_behind_it_are_refused(source: Source, tmp_path: Path) -> None:
    train(CONFIG, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("config.json", "model/config.json")}
    fewer = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=CONFIG.training.steps - 1))
    with pytest.raises(ConfigError, match=r"has a checkpoint of step 5, and training\.steps is 4; raise it"):
        train(fewer, tmp_path / "run")
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("name", ["config.json", "init_from.json"])
@pytest.mark.parametrize("content", ["", '["/x', "7"])
def test_damaged_files_are_named(name: str, content: str, source: Source, earlier: Path, tmp_path: Path) -> None:
    if name == "init_from.json":
        interrupt_at_the_start(source, tmp_path / "run", earlier)
    else:
        train(CONFIG, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"run/{name}: damaged"):
        train(CONFIG, tmp_path / "run")


def test_what_is_no_model_is_seen_before_training(source: Source, tmp_path: Path) -> None:
    source.before = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Stopped):
        train(CONFIG, tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "notes.txt").write_text("mine")
    source.asked = []
    with pytest.raises(ConfigError, match=r"run/model: is no model folder"):
        train(CONFIG, tmp_path / "run")
    assert source.asked == [] and (tmp_path / "run" / "model" / "notes.txt").read_text() == "mine"


def test_one_run_at_a_time(source: Source, tmp_path: Path) -> None:
    def second(step: int) -> None:
        source.before = lambda step: None
        train(CONFIG, tmp_path / "run")

    source.before = second
    with pytest.raises(ConfigError, match=r"run: another run is at work in it; wait for its end"):
        train(CONFIG, tmp_path / "run")
    source.before = lambda step: None
    train(CONFIG, tmp_path / "run")


def test_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with only_run(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    assert (tmp_path / "run" / "config.json").exists()


def test_what_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), only_run(tmp_path / "run"):
        raise ConfigError("cannot work")
    assert list(tmp_path.iterdir()) == []


def test_sampling_is_checked_before_the_first_step() -> None:
    config = ExperimentConfig(model=presets.test(), sampling=SamplingConfig(num_inference_steps=2000))
    with pytest.raises(ConfigError, match=r"sampling\.num_inference_steps: .* not 2000"):
        check_sampling(config)
    undrawn = dataclasses.replace(config, training=dataclasses.replace(config.training, sample_every=0))
    check_sampling(undrawn)
    with pytest.raises(ConfigError, match="num_inference_steps"):
        rolling = dataclasses.replace(undrawn.training, evaluate_every=10, checkpoint_every=10)
        check_sampling(dataclasses.replace(undrawn, training=rolling))
