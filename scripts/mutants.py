"""Mutation check: break the code in one known way at a time and see that the tests named for it go red.

Each entry of tests/mutants.toml is a breakage: a file, a fragment that occurs in it exactly once, what replaces it, and
the tests that must then fail. Every breakage is applied to a copy of the tree; the checkout itself is never touched.
Exit status: 0 if every breakage was noticed, 1 if one survived, could not be applied or broke the tests' own set-up.

    python scripts/mutants.py --jobs 2
    python scripts/mutants.py --only guidance
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "mutants.toml"
# What the tests read; environments, caches and runs stay behind.
COPIED = ("dtc_jax", "configs", "tests", "scripts", "docs", "examples", ".ci")

Verdict = Literal["killed", "SURVIVED", "NOT APPLIED", "NO TESTS", "TIMEOUT"]


@dataclass(frozen=True)
class Mutant:
    """One breakage.

    Attributes:
        name: What is broken, in a few words; unique.
        file: Path below the root of the project.
        find: Fragment that occurs in the file exactly once.
        replace: What stands there instead.
        tests: Arguments for pytest (files, or nodes as `file::test`) of which at least one test must fail.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant, how long it took, and the line that says why."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    reason: str


def load_mutants(path: Path = TABLE) -> list[Mutant]:
    """The table's entries.

    Raises:
        ValueError: two entries with the same name, or an entry that changes nothing or names no tests.
        TypeError: an entry with a missing or unknown field.
    """
    with path.open("rb") as file:
        entries = tomllib.load(file)["mutant"]
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        if names.count(mutant.name) > 1:
            raise ValueError(f"two mutants are called {mutant.name!r}")
        if mutant.find == mutant.replace or not mutant.tests:
            raise ValueError(f"mutant {mutant.name!r} changes nothing or names no tests")
    return mutants


def applied(mutant: Mutant, root: Path = ROOT) -> str:
    """The mutated text of the mutant's file.

    Raises:
        ValueError: the file is not there, or the fragment does not occur in it exactly once.
    """
    path = root / mutant.file
    if not path.is_file():
        raise ValueError(f"{mutant.file} does not exist")
    text = path.read_text()
    count = text.count(mutant.find)
    if count != 1:
        raise ValueError(f"the fragment occurs {count} times in {mutant.file}")
    return text.replace(mutant.find, mutant.replace)


def copy_tree(target: Path, source: Path = ROOT) -> None:
    """Copies what the tests need: the top level's files and the folders in COPIED.

    Python's compiled files come along: they hold for a file of the same size and time, which a mutated one is not.
    """
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.is_file():
            shutil.copy2(entry, target)
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def pytest(tree: Path, options: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs pytest in a tree."""
    # The tree's own package first: an editable installation would otherwise import the checkout's. The compile cache is
    # shared, because its keys are the compiled programs: a mutated function is another program.
    environment = dict(os.environ, PYTHONPATH=str(tree))
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "-rf", "-m", "", *options]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout)


def try_mutant(mutant: Mutant, source: Path, scratch: Path, number: int, timeout: float) -> Outcome:
    """Applies one mutant to a fresh copy of `source` and runs its tests."""
    start = time.monotonic()
    tree = scratch / f"{number:03d}"

    def outcome(verdict: Verdict, reason: str) -> Outcome:
        return Outcome(mutant, verdict, time.monotonic() - start, reason)

    try:
        text = applied(mutant)
    except ValueError as error:
        return outcome("NOT APPLIED", str(error))
    try:
        copy_tree(tree, source)
        (tree / mutant.file).write_text(text)
        result = pytest(tree, ("-x", *mutant.tests), timeout)
    except subprocess.TimeoutExpired:
        return outcome("TIMEOUT", f"no verdict within {timeout:.0f} s")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    failures = [line for line in lines if line.startswith("FAILED")]
    if result.returncode == 1 and failures:
        return outcome("killed", failures[0].removeprefix("FAILED ").split(" - ")[0])
    last = (lines or result.stderr.splitlines() or [""])[-1]
    # Status 0: all passed. Anything else but 1 is an error of collection or use, which any change might cause.
    return outcome("SURVIVED" if result.returncode == 0 else "NO TESTS", last)


def check_sound(mutants: list[Mutant], tree: Path, jobs: int, timeout: float) -> str | None:
    """Runs all named tests on an unchanged copy; the reason if they do not pass, since red would then prove nothing."""
    copy_tree(tree)
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    result = pytest(tree, ("-n", str(jobs), "--dist", "loadfile", *tests), timeout * 4)
    return None if result.returncode == 0 else result.stdout[-3000:] + result.stderr[-1000:]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", default="", help="only mutants whose name or file contains this")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one mutant")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    options = parser.parse_args(arguments)

    mutants = [m for m in load_mutants() if options.only in m.name or options.only in m.file]
    if not mutants:
        parser.error(f"no mutant's name or file contains {options.only!r}")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.file}")
        return 0

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        scratch = Path(folder)
        sound = scratch / "sound"
        print(f"{len(mutants)} mutants; first the tests on the sound tree ...", flush=True)
        unsound = check_sound(mutants, sound, options.jobs, options.timeout)
        if unsound is not None:
            print(f"{unsound}\nthe tests fail on the sound tree: no verdict on any mutant")
            return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = [
                pool.submit(try_mutant, mutant, sound, scratch, number, options.timeout)
                for number, mutant in enumerate(mutants)
            ]
            outcomes = []
            for future in futures:
                outcome = future.result()
                outcomes.append(outcome)
                print(
                    f"{outcome.verdict:<12}{outcome.seconds:5.0f} s  {outcome.mutant.name}  [{outcome.reason}]",
                    flush=True,
                )
    missed = [outcome for outcome in outcomes if outcome.verdict != "killed"]
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} mutants killed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
