"""results.jsonl: what was made of what, one line an image; by it an interrupted run goes on where it stopped.

A line is added once its image is whole. One process writes results.jsonl itself; of several, each writes a file of its
own (results-00001-of-00004.jsonl), and whoever comes to its end puts all of them together in results.jsonl.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dtc_jax.data.images import InputError

RESULTS_FILE = "results.jsonl"

Entry = dict[str, Any]


class ResultsLog:
    """The results in a folder: those of earlier runs, and those of this process.

    Attributes:
        path: the file that this process adds to.
        made: images that this process has made.
        failed: images that it could not make.
    """

    def __init__(self, folder: Path, process_id: int = 0, num_processes: int = 1) -> None:
        self._folder = folder
        name = RESULTS_FILE if num_processes == 1 else f"results-{process_id:05d}-of-{num_processes:05d}.jsonl"
        self.path = folder / name
        self._lock = threading.Lock()
        self._known = read_results(folder)
        self.made = self.failed = 0

    def is_done(self, output: Path, fingerprint: str) -> bool:
        """Whether an earlier run has made this image of the same inputs with the same settings, and it is there."""
        entry = self._known.get(output.name)
        return entry is not None and entry.get("fingerprint") == fingerprint and output.is_file()

    def add(self, entry: Entry) -> None:
        """Add the line of one image, or of one that could not be made. Thread-safe.

        Raises:
            InputError: it cannot be written.
        """
        line = json.dumps({**entry, "finished": datetime.now(UTC).isoformat(timespec="milliseconds")})
        try:
            with self._lock, self.path.open("ab+") as file:
                # A process that was killed may have left half a line.
                if file.tell() > 0:
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = "\n" + line
                file.write((line + "\n").encode())
                if "error" in entry:
                    self.failed += 1
                else:
                    self.made += 1
        except OSError as error:
            raise InputError(f"results {self.path}: cannot be written ({error.strerror})") from None

    def merge(self, order: Sequence[str]) -> None:
        """Put every process's lines together in results.jsonl: one for each image, the newest, in the order of `order`.

        Two processes may do so at the same time: whoever renames last looks again whether lines have come meanwhile.

        Raises:
            InputError: it cannot be written.
        """
        place = {name: number for number, name in enumerate(order)}
        try:
            while True:
                merged = read_results(self._folder)
                names = sorted(merged, key=lambda name: (place.get(name, len(place)), name))
                scratch = self._folder / f".{RESULTS_FILE}.{os.getpid()}.tmp"
                scratch.write_text("".join(json.dumps(merged[name]) + "\n" for name in names))
                os.replace(scratch, self._folder / RESULTS_FILE)
                if read_results(self._folder) == merged:
                    return
        except OSError as error:
            raise InputError(f"results {self._folder / RESULTS_FILE}: cannot be written ({error.strerror})") from None


def read_results(folder: Path) -> dict[str, Entry]:
    """The newest line of every image in all results files of a folder, by the image's name; half lines are left out."""
    found: dict[str, Entry] = {}
    for path in [folder / RESULTS_FILE, *sorted(folder.glob("results-*-of-*.jsonl"))]:
        for entry in _entries(path):
            name = entry["output"]
            if name not in found or found[name].get("finished", "") <= entry.get("finished", ""):
                found[name] = entry
    return found


def _entries(path: Path) -> Iterable[Entry]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"results {path}: cannot be read ({error.strerror})") from None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("output"), str):
            yield entry
