"""Kill a training run at random moments, start it again each time, and compare its end with an uninterrupted run's.

    python tests/training/kill_and_resume.py --kills 20 --seed 0

`kill -9` gives a process no chance to finish anything. The script prints in which phase each kill met the run (before
its first step, after step N, while saving step N), and fails unless parameters, moving average, optimizer state and
data position at the end are bit for bit those of the run that nobody killed. Metrics, the sample grid and the exported
model must be the same, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training.runs import ROOT, finish, read_checkpoint, read_metrics, read_position, start

CHECKPOINT_EVERY = 3
AIMS = ("starting", "step", "saving")
SAVING_SHARE, STARTING_SHARE = 0.4, 0.15
"""Of the kills: those aimed at a save, and those aimed at the time before the first step."""


class Run:
    """One start of the program, watched from outside."""

    def __init__(self, run_dir: Path, flags: list[str]) -> None:
        self.checkpoints = run_dir / "checkpoints"
        # A save that an earlier kill cut off may still lie there.
        self.before = set(self._unfinished())
        self.newest = self.complete()
        self.lines: list[str] = []
        self.process = start(run_dir, *flags, whole=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def _unfinished(self) -> Iterator[tuple[int, int]]:
        for path in self.checkpoints.glob("*.orbax-checkpoint-tmp*"):
            try:
                yield int(path.name.split(".")[0]), path.stat().st_ino
            except FileNotFoundError:
                continue

    def complete(self) -> int:
        """The newest complete step."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=0)

    def saving(self) -> int | None:
        """The step that is being written."""
        return next((step for step, inode in self._unfinished() if (step, inode) not in self.before), None)

    def steps(self) -> list[int]:
        """The steps that this start has told of."""
        return [int(match[1]) for line in list(self.lines) if (match := re.search(r" step (\d+)/\d+  \w+ ", line))]

    def kill(self) -> bool:
        """Kill it with SIGKILL; False if it had ended well by itself."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.reader.join()
        code = self.process.returncode
        assert code in (0, -signal.SIGKILL), "\n".join([f"exit code {code}", *self.lines[-20:]])
        return code != 0

    def wait_for(self, aim: str, chance: random.Random) -> None:
        """Let it run to a random moment of the phase, or to its end."""
        # Some checkpoints on, so that the run as a whole does not stay where it is.
        least, further = chance.randint(1, CHECKPOINT_EVERY), self.newest + chance.randint(0, 2) * CHECKPOINT_EVERY
        deadline = time.monotonic() + chance.uniform(0.0, 12.0) if aim == "starting" else None
        while self.process.poll() is None:
            if deadline is not None and (time.monotonic() > deadline or self.steps()):
                return
            arrived = len(self.steps()) >= least and self.complete() >= further
            if aim == "step" and arrived:
                time.sleep(chance.uniform(0.0, 0.1))
                return
            if aim == "saving" and arrived and self.saving() is not None:
                time.sleep(chance.uniform(0.0, 0.15))
                return
            time.sleep(0.002)


def phase(run: Run) -> tuple[str, int]:
    """What a killed run was at, as far as its files and lines tell, and the last step that it had made."""
    saving, steps = run.saving(), run.steps()
    if saving is not None:
        return "saving", saving
    return ("step", steps[-1]) if steps else ("starting", 0)


def kill_until(run_dir: Path, flags: list[str], kills: int, chance: random.Random) -> list[tuple[str, int]]:
    """Start the run and kill it, again and again; what it was at each time."""
    saving, starting = round(SAVING_SHARE * kills), round(STARTING_SHARE * kills)
    aims = ["saving"] * saving + ["starting"] * starting + ["step"] * (kills - saving - starting)
    chance.shuffle(aims)
    phases: list[tuple[str, int]] = []
    for number, aim in enumerate(aims, start=1):
        run = Run(run_dir, flags)
        run.wait_for(aim, chance)
        if not run.kill():
            raise SystemExit(f"the run ended after {number - 1} kills; give it more --steps")
        phases.append(phase(run))
        resumed = next((line.split(" ", 1)[1] for line in run.lines if "resumed from" in line), "not resumed")
        name, step = phases[-1]
        where = "starting or compiling" if name == "starting" else f"{name} {step}"
        print(f"kill {number:2}: {where:22} ({resumed})", flush=True)
    return phases


def compare(run_dir: Path, expected: Path, step: int) -> int:
    """Assert that two runs ended alike; the number of arrays that were compared."""
    arrays, expected_arrays = read_checkpoint(run_dir, step), read_checkpoint(expected, step)
    assert arrays.keys() == expected_arrays.keys()
    for part in ("params", "ema", "opt_state", "step"):
        assert any(path.startswith(f"['{part}']") for path in arrays), part
    for path, leaf in expected_arrays.items():
        assert arrays[path].dtype == leaf.dtype
        np.testing.assert_array_equal(arrays[path], leaf, err_msg=path)
    assert read_position(run_dir, step) == read_position(expected, step)
    assert read_metrics(run_dir) == read_metrics(expected)
    for folder in ("model", "samples"):
        names = {path.name for path in (expected / folder).iterdir()}
        assert {path.name for path in (run_dir / folder).iterdir()} == names and names
        for name in names:
            assert (run_dir / folder / name).read_bytes() == (expected / folder / name).read_bytes(), name
    return len(arrays)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; 0 if it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many times the run is killed (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--steps", type=int, default=None, help="of the run (default: enough for the kills)")
    parser.add_argument("--folder", type=Path, default=None, help="where the runs are made (default: a temporary one)")
    parser.add_argument("flags", nargs="*", help="after --: further flags of train.py, e.g. of a data set")
    arguments = parser.parse_args(argv)
    steps = arguments.steps or 3 * CHECKPOINT_EVERY * (arguments.kills + 2)
    settings = {"steps": steps, "log-every": 1, "checkpoint-every": CHECKPOINT_EVERY, "evaluate-count": 8}
    settings |= {"sample-every": steps, "evaluate-every": steps}
    flags = ["--cpu-devices", "1"]
    for name, value in settings.items():
        flags += [f"--training.{name}", str(value)]
    flags += arguments.flags
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Most of a start is compilation otherwise.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        began = time.monotonic()
        finish(start(folder / "uninterrupted", *flags, whole=True))
        print(f"uninterrupted: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        phases = kill_until(folder / "killed", flags, arguments.kills, random.Random(arguments.seed))
        (log,) = finish(start(folder / "killed", *flags, whole=True))
        print(f"last start: {(re.findall('resumed from step .*', log) or ['from the beginning'])[0]}", flush=True)
        arrays = compare(folder / "killed", folder / "uninterrupted", steps)
    counts = Counter(name for name, _ in phases)
    late = sum(step >= 3 for _, step in phases)
    print(
        f"{len(phases)} kills: {counts['saving']} during a save, {counts['starting']} before the first step, "
        f"{counts['step']} between; {late} after step 3"
    )
    print(
        f"{arrays} arrays of step {steps} (parameters, average, optimizer state), data position: bit for bit the same"
    )
    if arguments.kills >= 20 and (counts["saving"] < 5 or late < 10):
        print("too few kills during a save or after step 3; take another --seed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
