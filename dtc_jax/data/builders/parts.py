"""Records made by several processes, and kept in part files where a killed build finds them again.

A part holds the records of `PART_SIZE` cases in a row. It is written beside its place and renamed, so that it is there
whole or not at all. The folder of parts belongs to one build of one source with one set of options: their fingerprint
is in it, and parts of another one are removed. A part with broken cases is made again by the next build, because their
files may have been mended.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtc_jax.data.builders.report import Broken, Report
from dtc_jax.data.builders.source import Item, Skipped, Source, make_sample
from dtc_jax.data.images import InputError
from dtc_jax.data.printing import one_line
from dtc_jax.data.records import FEATURES, SCHEMA, encode

PART_SIZE = 32
"""Cases of a part: some seconds of work, some megabytes."""

PREPARATION = 1
"""Version of what happens between files and records; parts and data sets of another one are not continued."""

_FINGERPRINT = "fingerprint.json"
_TEXTS = ("id", "category")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What makes a record of a case; picklable."""

    source: Source
    size: int
    context: float

    def describe(self) -> dict[str, Any]:
        """For the metadata and the fingerprint."""
        versions = {"schema": SCHEMA, "preparation": PREPARATION}
        return {**versions, "size": self.size, "context": self.context, **self.source.describe()}

    def fingerprint(self, items: Mapping[str, Sequence[Item]]) -> str:
        """Of these options and cases; the files behind the cases are not looked at."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for split, cases in items.items():
            digest.update(json.dumps([split, len(cases)]).encode())
            for case in cases:
                digest.update(json.dumps(case).encode())
        return digest.hexdigest()

    def record(self, item: Item) -> dict[str, Any] | Skipped | str:
        """One record as TFDS takes it; why it was left out; or, as text, what is broken."""
        try:
            case = self.source.open(item)
            return case if isinstance(case, Skipped) else encode(make_sample(case, self.size, self.context))
        except InputError as error:
            return str(error)
        # Whatever else a strange file brings about must not end a build of hours; its name and the error are logged.
        # Decoders have errors of their own, which no list of kinds would have all of.
        except Exception as error:
            return one_line(error)


def open_parts(folder: Path, fingerprint: str, restart: bool = False) -> bool:
    """Make the folder of parts ready: with the parts of a build of the same fingerprint, or empty.

    Returns:
        Whether there is something to continue.
    """
    mark = folder / _FINGERPRINT
    try:
        same = json.loads(mark.read_bytes()) == fingerprint
    except (OSError, ValueError):
        same = False
    if restart or not same:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(mark, json.dumps(fingerprint).encode())
    return same and not restart and any(folder.glob("*.npz"))


def make_records(
    preparation: Preparation,
    split: str,
    items: Sequence[Item],
    folder: Path,
    report: Report,
    log: Path,
    workers: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Iterator[dict[str, Any]]:
    """The records of a split, in the order of its items whatever the number of workers.

    Args:
        preparation: what makes them.
        split: its name.
        items: its cases.
        folder: of the parts; see `open_parts`.
        report: counts go here; it also decides when there are too many broken cases.
        log: where broken cases are listed when there are too many.
        workers: processes; 1 works in this one.
        progress: called with the number of cases done since the last call.

    Raises:
        InputError: too many broken cases, or none left for this split.
    """
    parts = [
        (folder / f"{split}-{number:06d}.npz", items[start : start + PART_SIZE])
        for number, start in enumerate(range(0, len(items), PART_SIZE))
    ]
    for path, cases in zip((path for path, _ in parts), _made(preparation, parts, workers), strict=True):
        records, outcome = _read_part(path)
        report.broken += [Broken(split, name, reason) for name, reason in outcome["broken"]]
        report.skipped.update(outcome["skipped"])
        report.check(log)
        report.records[split] += len(records)
        yield from records
        progress(cases)
    if not report.records[split]:
        report.write_log(log)
        raise InputError(f"split {split}: none of its {len(items)} cases is left (broken ones are listed in {log})")


def _made(preparation: Preparation, parts: Sequence[tuple[Path, Sequence[Item]]], workers: int) -> Iterator[int]:
    """Make the parts that are missing, in order; after each part, made or found, the number of its cases."""
    missing = [part for part in parts if not _is_good(part[0])]
    waiting: deque[tuple[Path, Future[None]]] = deque()
    if workers == 1 or len(missing) <= 1:
        todo = {path for path, _ in missing}
        for path, cases in parts:
            if path in todo:
                _make_part(preparation, path, cases)
            yield len(cases)
        return
    # Spawned, not forked: JAX, which the masks import, must not be forked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, initializer=_end_with_parent)
    queue = iter(missing)

    def submit() -> None:
        for path, cases in queue:
            # Ctrl-C reaches every process, and is this one's to answer. Workers are started here and take over what is
            # blocked: to ignore it only once they run would be too late, for they import for seconds.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                waiting.append((path, pool.submit(_make_part, preparation, path, cases)))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            return

    try:
        for _ in range(2 * workers):
            submit()
        for path, cases in parts:
            if waiting and waiting[0][0] == path:
                waiting.popleft()[1].result()
                submit()
            yield len(cases)
    except BrokenProcessPool:
        raise InputError(
            "a worker process was ended from outside, perhaps for want of memory; "
            "run the same command again to continue, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make_part(preparation: Preparation, path: Path, items: Sequence[Item]) -> None:
    arrays: dict[str, np.ndarray] = {}
    broken: list[tuple[str, str]] = []
    skipped: dict[str, int] = {}
    count = 0
    for item in items:
        record = preparation.record(item)
        if isinstance(record, str):
            broken.append((item.id, record))
        elif isinstance(record, Skipped):
            skipped[record.reason] = skipped.get(record.reason, 0) + 1
        else:
            arrays |= {f"{count}.{name}": _to_array(record[name]) for name in FEATURES}
            count += 1
    outcome = json.dumps({"count": count, "broken": broken, "skipped": skipped}).encode()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, outcome=np.frombuffer(outcome, np.uint8), **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_part(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        outcome = json.loads(arrays["outcome"].tobytes())
        return [
            {name: _from_array(name, arrays[f"{number}.{name}"]) for name in FEATURES}
            for number in range(outcome["count"])
        ], outcome


def _is_good(path: Path) -> bool:
    """Whether a part is there, can be read, and has no broken cases."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return not json.loads(arrays["outcome"].tobytes())["broken"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _to_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    return np.frombuffer(value.encode() if isinstance(value, str) else value, np.uint8)


def _from_array(name: str, array: np.ndarray) -> Any:
    if array.dtype != np.uint8:
        return array
    return array.tobytes().decode() if name in _TEXTS else array.tobytes()


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _end_with_parent() -> None:
    """In a worker: end when the process that started it does. A killed one cannot say so, and workers would stay."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
