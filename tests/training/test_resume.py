"""A run that is killed and resumed ends bit-identical to one that was not."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dtc_jax.config import ConfigError
from dtc_jax.training.initial import initial_params
from dtc_jax.weights.model_folder import load_model_folder, save_model_folder
from tests.training import kill_and_resume
from tests.training.kill_and_resume import compare
from tests.training.runs import finish, read_checkpoint, read_metrics, start
from tests.training.small_run import CONFIG, Source, same, train, use

# Several programs are compiled and started; busy machines need minutes for that.
pytestmark = pytest.mark.timeout(900)

KILL_IN_SAVE = """
import os, signal, sys
from pathlib import Path

def kill(event, arguments):
    # All of the checkpoint is written, but it has not got its name.
    if event == "os.rename" and str(arguments[1]).endswith("/checkpoints/4"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from dtc_jax.training.command import main
main(sys.argv[1:], Path("configs"))
"""

KILL_AFTER_SAVE = """
import os, signal, sys, time
from pathlib import Path
from dtc_jax.training.command import main
from dtc_jax.training.progress import Progress

checkpoint = Path(sys.argv[3]) / "checkpoints" / "4"
report = Progress.report

def report_or_kill(self, step, metrics):
    report(self, step, metrics)
    if step == 5:
        while not checkpoint.is_dir():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

Progress.report = report_or_kill
main(sys.argv[1:], Path("configs"))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(start(run_dir, "--cpu-devices", "1"))
    return run_dir


def test_what_a_run_leaves(uninterrupted: Path) -> None:
    assert {path.name for path in (uninterrupted / "checkpoints").iterdir()} == {"4", "6"}
    metrics = read_metrics(uninterrupted)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "diffusion", "perceptual", "grad_norm"} <= metrics[0].keys()
    assert np.isfinite([line["loss"] for line in metrics]).all()
    with Image.open(uninterrupted / "samples" / "00000006.png") as grid:
        assert np.asarray(grid).std() > 10
    # The model is the moving average of what was trained, and what was frozen as it was.
    config, params = load_model_folder(uninterrupted / "model")
    assert config.name == "test"
    checkpoint = read_checkpoint(uninterrupted, 6)
    trained = params["reference_projection"]["kernel"]
    np.testing.assert_array_equal(trained, checkpoint["['ema']['reference_projection/kernel']"])
    assert {"vae", "vgg", "reference_encoder"} <= params.keys()
    assert not any("vae/" in path for path in checkpoint)


def _killed_in_the_save_of_step_4(run_dir: Path) -> None:
    process = start(run_dir, "--cpu-devices", "1", code=KILL_IN_SAVE)
    _, log = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, log
    found = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert "2" in found and "4" not in found and any("tmp" in name for name in found), found


def test_killed_in_a_save(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    _killed_in_the_save_of_step_4(run_dir)
    (log,) = finish(start(run_dir, "--cpu-devices", "1"))
    assert "resumed from step 2" in log
    assert compare(run_dir, uninterrupted, 6) > 50


@pytest.mark.slow
def test_killed_twice(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    _killed_in_the_save_of_step_4(run_dir)
    second = start(run_dir, "--cpu-devices", "1", code=KILL_AFTER_SAVE)
    _, log = second.communicate(timeout=600)
    assert second.returncode == -signal.SIGKILL, log
    assert "resumed from step 2" in log
    assert not (run_dir / "checkpoints" / "6").exists()

    (log,) = finish(start(run_dir, "--cpu-devices", "1"))
    assert "resumed from step 4" in log
    assert compare(run_dir, uninterrupted, 6) > 50


@pytest.mark.slow
def test_killed_at_random_moments(capsys: pytest.CaptureFixture[str]) -> None:
    assert kill_and_resume.main(["--kills", "4", "--seed", "3"]) == 0
    assert "4 kills: 2 during a save" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- in this process


class Interrupted(Exception):
    """Stands in for whatever ends a process."""


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    return use(Source(), monkeypatch)


def interrupt(step: int) -> None:
    if step == 2:
        raise Interrupted


def test_resumed_in_this_process(source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dtc_jax.train")
    # The frozen encoder comes from a folder that is gone when the run is resumed.
    earlier = save_model_folder(tmp_path / "earlier", CONFIG, initial_params(CONFIG, jax.random.key(7)))
    expected = train(CONFIG, tmp_path / "whole", earlier)
    assert source.asked == [0, 1, 2, 3, 4]

    source.asked, source.before = [], interrupt
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "parts", earlier)
    shutil.rmtree(earlier)
    assert source.asked == [0, 1]
    source.asked, source.before = [], lambda step: None
    result = train(CONFIG, tmp_path / "parts")
    assert source.asked == [2, 3, 4]
    assert "resumed from step 2" in caplog.messages
    assert same(result, expected)
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    assert [line["step"] for line in read_metrics(tmp_path / "whole")] == [2, 4, 5]

    # A finished run has nothing to do but to say what it trained.
    source.asked = []
    assert same(train(CONFIG, tmp_path / "whole"), expected) and source.asked == []

    # More steps go on from the end; the folder then tells the new length.
    longer = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, steps=6))
    assert not same(train(longer, tmp_path / "whole"), expected)
    assert source.asked == [5]
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["training"]["steps"] == 6

    # What another configuration trains does not fit.
    other = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, trainable="^vae/encoder"))
    with pytest.raises(ConfigError, match=r"was started with training\.trainable"):
        train(other, tmp_path / "whole")
