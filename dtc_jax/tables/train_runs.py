"""Train the runs of a table, each by a `train.py` command of its own, one after the other."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import dtc_jax
from dtc_jax.tables.budgets import Budget
from dtc_jax.weights.model_folder import save_model_folder
from dtc_jax.weights.run_folder import load_checkpoint

CHECKOUT = Path(dtc_jax.__file__).parent.parent
"""Where train.py and its experiments are."""

JUDGE_SEED = 1000
"""Of the VGG that figures are measured with: no run's own."""


class TrainingFailed(Exception):
    """train.py ended otherwise than well, after saying why.

    Attributes:
        code: Its exit code.
    """

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"{command}: ended with exit code {code}")
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a row of a table with one seed, or a network that all rows share."""

    name: str
    experiment: str
    folder: Path
    seed: int
    flags: tuple[str, ...]
    init_from: tuple[Path, ...] = ()

    @property
    def words(self) -> list[str]:
        """The command, without the interpreter."""
        seeds = ["--training.seed", str(self.seed), "--data.seed", str(self.seed)]
        start = ["--init-from", *map(str, self.init_from)] if self.init_from else []
        return ["train.py", self.experiment, "--run-dir", str(self.folder), *start, *seeds, *self.flags]

    @property
    def command(self) -> str:
        """The command as one types it, the folders beside the run's without their path."""
        beside = {str(path): path for path in (self.folder, *self.init_from)}
        words = [str(beside[word].relative_to(self.folder.parent)) if word in beside else word for word in self.words]
        return shlex.join(["python", *words])

    @property
    def finished(self) -> bool:
        """Whether its model has been written."""
        return (self.folder / "model" / "config.json").is_file()


def judge_run(budget: Budget, output_dir: Path) -> Run:
    """The VGG that figures are measured with."""
    return Run(
        name="judge",
        experiment="tiny_vgg",
        folder=output_dir / "judge",
        seed=JUDGE_SEED,
        flags=budget.judge_flags,
    )


def shared_runs(budget: Budget, output_dir: Path) -> list[Run]:
    """Autoencoder and VGG of all rows, where the budget has them trained."""
    if budget.stage_flags is None:
        return []
    return [
        Run(name=stage, experiment=stage, folder=output_dir / stage, seed=0, flags=budget.stage_flags)
        for stage in ("tiny_autoencoder", "tiny_vgg")
    ]


def row_runs(budget: Budget, output_dir: Path) -> list[Run]:
    """Every row with every seed, a seed's rows after one another: a table cut short has whole seeds."""
    shared = shared_runs(budget, output_dir)
    init_from = tuple(run.folder / "model" for run in shared) or (output_dir / "frozen",)
    return [
        Run(
            name=f"{experiment}-seed{seed}",
            experiment=experiment,
            folder=output_dir / f"{experiment}-seed{seed}",
            seed=seed,
            flags=budget.flags,
            init_from=init_from,
        )
        for seed in budget.seeds
        for experiment in budget.experiments
    ]


def write_frozen(output_dir: Path) -> None:
    """The shipped model's autoencoder and VGG, without what it learned of products."""
    folder = output_dir / "frozen"
    if folder.is_dir():
        return
    config, params = load_checkpoint(None, dtype=np.float32, networks=("vae", "vgg"))
    save_model_folder(folder, config, params)


def train_all(runs: list[Run]) -> None:
    """Train those that are not finished; an unfinished one goes on from its newest checkpoint.

    Raises:
        TrainingFailed: the first that does not end well.
    """
    left = [run for run in runs if not run.finished]
    for number, run in enumerate(left, start=1):
        print(f"\n[{number}/{len(left)}] {run.command}", flush=True)
        with passing_on_sigterm(subprocess.Popen([sys.executable, *run.words], cwd=CHECKOUT)) as process:
            code = process.wait()
        if code != 0:
            raise TrainingFailed(run.command, code)


@contextmanager
def passing_on_sigterm(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Hand SIGTERM on, upon which train.py saves a checkpoint; whatever happens here, wait for the process's end.

    Ctrl-C reaches all processes of a terminal by itself.
    """

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield process
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def describe_run(run: Run) -> dict[str, Any]:
    """Command, flags, time, samples, device and revision of a finished run, from what it wrote."""
    # A resumed run repeats some steps: the last record of each counts.
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    of_step = {line["step"]: line for line in lines if "seconds" in line}
    config = json.loads((run.folder / "config.json").read_text())
    origin = [json.loads(line) for line in (run.folder / "provenance.jsonl").read_text().splitlines()][-1]
    return {
        "command": run.command,
        "flags": list(run.flags),
        "seconds": sum(line["seconds"] for line in of_step.values()),
        "samples": max(of_step) * config["training"]["batch_size"],
        "device": f"{origin['device']}, {origin['device_count']} {origin['platform']} device(s)",
        "git_revision": origin["git_revision"],
    }
