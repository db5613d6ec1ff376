"""train.py's command line: help, and errors of one line with exit code 2."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dtc_jax import presets
from dtc_jax.config import DataConfig, ExperimentConfig, config_to_json
from dtc_jax.training.command import Arguments, find_configs, main, missing_stages
from dtc_jax.weights.model_folder import save_model_folder

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `use_cpu_cores` sets is undone after the test.
    monkeypatch.setenv("NPROC", "32")


def _expect_error(argv: list[str], capfd: pytest.CaptureFixture[str], *parts: str, configs: Path = CONFIGS) -> None:
    capfd.readouterr()
    assert main(argv, configs) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train.py: ") and captured.err.count("\n") == 1, captured.err
    for part in parts:
        assert part in captured.err, captured.err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], CONFIGS) == 0
    text = capsys.readouterr().out
    assert main([], CONFIGS) == 2
    assert capsys.readouterr().out == text
    for path in CONFIGS.glob("[a-z]*.py"):
        line = next(line for line in text.splitlines() if line.split()[:1] == [path.stem])
        assert path.read_text().splitlines()[0].strip('"') in line


def _fields(kind: type, prefix: str = "") -> list[tuple[str, type]]:
    fields = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            fields += _fields(type(field.default), f"{prefix}{field.name}.")
        else:
            fields.append((f"--{prefix}{field.name}".replace("_", "-"), kind))
    return fields


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["test", "--help"], CONFIGS)
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    flags = [flag for flag, _ in _fields(ExperimentConfig)]
    assert len(flags) > 60
    for flag in [*flags, "--run-dir", "--init-from", "--cpu-devices", "--coordinator"]:
        assert re.search(rf"{flag}[ ,]", text), flag
    for explanation in [
        "Run folder: config.json",
        "Probability that a sample's reference tokens are replaced",
        "Groups of every GroupNorm",
        "Global batch size, over all devices and processes",
        "HOST:PORT of process 0",
    ]:
        assert explanation in text, explanation


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["tset", "--run-dir", "RUN"], ("'tset'", "test, tiny")),
        (["test"], ("--run-dir",)),
        (["test", "--run-dir", "RUN", "--optimizer.lerning-rate", "1"], ("--optimizer.lerning-rate",)),
        (["test", "--run-dir", "RUN", "--training.batch-size", "many"], ("batch-size", "many")),
        (["test", "--run-dir", "RUN", "--training.compute-dtype", "float64"], ("compute-dtype", "bfloat16")),
        (["test", "--run-dir", "RUN", "--training.steps", "0"], ("training.steps = 0",)),
        (["test", "--run-dir", "RUN", "--training.log-every", "0"], ("training.log_every = 0",)),
        (["test", "--run-dir", "RUN", "--loss.drop-tokens", "1"], ("more than 1",)),
        (["test", "--run-dir", "RUN", "--model.unet.in-channels", "8"], ("unet.in_channels = 8", "must be")),
        (["test", "--run-dir", "RUN", "--training.fsdp-devices", "3"], ("training.fsdp_devices = 3", "must divide")),
        (["test", "--run-dir", "RUN", "--training.batch-size", "12"], ("training.batch_size = 12", "multiple of")),
        # Before the stages that it needs are trained.
        (["tiny", "--run-dir", "RUN", "--training.batch-size", "12"], ("training.batch_size = 12", "multiple of")),
        (["test", "--run-dir", "RUN", "--training.trainable", "^unte/"], ("training.trainable", "'^unte/'")),
        (["test", "--run-dir", "RUN", "--optimizer.warmup-steps", "6"], ("warmup_steps = 6", "training.steps")),
        (["test", "--run-dir", "RUN", "--cpu-devices", "0"], ("--cpu-devices", "0")),
        (["test", "--run-dir", "RUN", "--num-processes", "2"], ("--coordinator", "go together")),
        (["test", "--run-dir", "RUN", "--init-from", "nowhere"], ("nowhere: no such folder",)),
        (["test", "--run-dir", "FILE"], ("file",)),
        (["test", "--run-dir", "/proc/run"], ("/proc/run: cannot be written",)),
        (["test", "--run-dir", "RUN", "--training.keep-best", "1"], ("training.keep_best = 1", "evaluate_every = 0")),
        (["test", "--run-dir", "RUN", "--training.profile-steps", "0"], ("training.profile_steps = 0",)),
    ],
    ids=lambda value: " ".join(value[3:] or value) if isinstance(value, list) else "",
)
def test_errors(argv: list[str], parts: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert jax.device_count() == 8
    (tmp_path / "file").write_text("")
    names = {"RUN": str(tmp_path / "run"), "FILE": str(tmp_path / "file")}
    _expect_error([names.get(part, part) for part in argv], capfd, *parts)


@pytest.mark.parametrize("part", ["stage", "model", "data", "diffusion", "training.seed", "training.batch_size"])
def test_run_folder_of_another_experiment(part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = {
        "stage": ["--stage", "vgg"],
        "model": ["--model.hint.kind", "none"],
        "data": ["--data.seed", "7"],
        "diffusion": ["--diffusion.prediction-type", "epsilon"],
        "training.seed": ["--training.seed", "7"],
        "training.batch_size": ["--training.batch-size", "16"],
    }
    config = _test_config()
    before = config_to_json(config)
    (tmp_path / "config.json").write_text(before)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    _expect_error(["test", "--run-dir", str(tmp_path), *flags[part]], capfd, str(tmp_path), part)
    assert (tmp_path / "config.json").read_text() == before


def test_unreadable_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    _expect_error(["test", "--run-dir", str(tmp_path)], capfd, "config")


def test_weights_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = ExperimentConfig(name="other", model=presets.test())
    save_model_folder(tmp_path / "other", config, {"unet": {"a": jax.numpy.zeros(3)}})
    flags = ["--run-dir", str(tmp_path / "run"), "--init-from", str(tmp_path / "other")]
    _expect_error(["test", *flags], capfd, "other", "missing", "unexpected")


def test_unknown_prerequisite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.py").write_text(
        '"""One."""\nfrom dtc_jax.config import ExperimentConfig\nCONFIG = ExperimentConfig(prerequisites=("two",))\n'
    )
    argv = ["one", "--run-dir", str(tmp_path / "run"), "--training.batch-size", "8"]
    _expect_error(argv, capfd, "no experiment 'two'", "one", configs=tmp_path)


def test_prerequisites_learn_from_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the VGG, which learns labels that only the generated world has."""
    from dtc_jax.training import loop
    from dtc_jax.training.command import read_config, run_with_prerequisites

    trained: dict[str, ExperimentConfig] = {}
    monkeypatch.setattr(loop, "train", lambda config, *_: trained.update({config.name: config}))
    configs = find_configs(CONFIGS)
    config = read_config(configs["tiny"])[0]
    config = dataclasses.replace(config, data=DataConfig(kind="records", path="shop", seed=4))
    run_with_prerequisites(Arguments(run_dir=tmp_path, config=config), configs)
    assert list(trained) == ["tiny_autoencoder", "tiny_vgg", "tiny"]
    assert trained["tiny_autoencoder"].data == trained["tiny"].data == config.data
    assert trained["tiny_vgg"].data == DataConfig(seed=4)


def _test_config() -> ExperimentConfig:
    from dtc_jax.training.command import read_config

    return read_config(CONFIGS / "test.py")[0]


def _run(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("NPROC", "JAX_NUM_CPU_DEVICES")}
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else [str(ROOT / "train.py")]), *flags],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


def test_program(tmp_path: Path) -> None:
    """As a process: exit code, one line, no traceback."""
    done = _run("", "test", "--run-dir", str(tmp_path / "run"), "--cpu-devices", "2", "--training.batch-size", "7")
    assert done.returncode == 2 and done.stdout == ""
    assert "training.batch_size = 7" in done.stderr and done.stderr.count("\n") == 1, done.stderr


THREADS = """
from pathlib import Path
import jax, jax.numpy as jnp
from dtc_jax.training.command import use_cpu_cores
use_cpu_cores(6, 12)
jax.block_until_ready(jnp.ones(3) + 1)
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
print(jax.device_count(), sum(name.startswith("tf_XLAEigen") for name in names))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_more_threads_than_devices() -> None:
    """With as many threads as devices, collectives between the devices may wait for one another for ever."""
    done = _run(THREADS)
    devices, threads = map(int, done.stdout.split())
    assert devices == 6 and threads >= 24, done.stderr


def test_prerequisites_are_trained_once_and_only_where_nothing_is_given(tmp_path: Path) -> None:
    configs = find_configs(CONFIGS)
    config = dataclasses.replace(_test_config(), prerequisites=("tiny_autoencoder", "tiny_vgg"))
    arguments = Arguments(run_dir=tmp_path, config=config)
    assert missing_stages(arguments, configs) == ["tiny_autoencoder", "tiny_vgg"]
    assert missing_stages(dataclasses.replace(arguments, init_from=(tmp_path,)), configs) == []
    done = tmp_path / "prerequisites" / "tiny_vgg" / "model"
    done.mkdir(parents=True)
    (done / "config.json").write_text("{}")
    assert missing_stages(arguments, configs) == ["tiny_autoencoder"]
    # Begun, but without a checkpoint: the rest is still missing, unless the run was started from folders.
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "config.json").write_text("{}")
    assert missing_stages(arguments, configs) == ["tiny_autoencoder"]
    (tmp_path / "init_from.json").write_text('["somewhere"]')
    assert missing_stages(arguments, configs) == []
    (tmp_path / "init_from.json").unlink()
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    assert missing_stages(arguments, configs) == []
