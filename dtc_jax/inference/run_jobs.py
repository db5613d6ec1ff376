"""Many cases through one pipeline: read ahead in threads, sampled in batches, written behind; one bad case is one.

reading threads -> regions of cases in order -> batches on the devices -> writing threads
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dtc_jax.config import BoxOutline
from dtc_jax.data.images import InputError, read_photo, write_image
from dtc_jax.data.locations import Location, LocationError, read_bytes
from dtc_jax.data.regions import Regions
from dtc_jax.data.window import DEFAULT_CONTEXT
from dtc_jax.inference.batches import choose_batch
from dtc_jax.inference.jobs import Job
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import Prepared, PreparedPhoto, read_case
from dtc_jax.inference.results import ResultsLog
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices, resolve_sampling, sampler_settings
from dtc_jax.weights.fingerprint import fingerprint

READERS, WRITERS = 4, 2
"""Threads."""
_AHEAD = 8
"""Cases that are read before they are needed, and images that wait to be written."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How every case is prepared, sampled and put back."""

    choices: SamplingChoices = CHECKPOINTS_OWN
    context: float = DEFAULT_CONTEXT
    keep_backdrop: bool = False
    regions: Regions = "each"
    feather: int | None = None
    batch_size: int | None = None
    """Images at once, on all devices of this process together; None: see `choose_batch`."""


@dataclass
class _Read:
    """A case on its way through the run."""

    job: Job
    case: PreparedPhoto | None = None
    error: str | None = None
    fingerprints: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    """Which of its images are not there yet."""


def run_jobs(
    pipeline: Pipeline,
    jobs: Sequence[Job],
    options: RunOptions,
    log: ResultsLog | None = None,
    report: Callable[[str], None] = print,
    progress: bool = True,
) -> int:
    """Sample every image of every job that is not there yet, and write it.

    Args:
        pipeline: the model.
        jobs: this process's.
        options: how.
        log: results of earlier runs, and what is written of this one; None: everything is made, and nothing is kept.
        report: is called with one line for every case that cannot be used.
        progress: a bar of images, on a terminal.

    Returns:
        How many cases could not be used.

    Raises:
        InputError: options out of range, or an output that cannot be written.
    """
    sampling = dataclasses.asdict(resolve_sampling(pipeline.config, options.choices))
    settings = {
        **sampling,
        **{name: getattr(options, name) for name in ("context", "keep_backdrop", "regions", "feather")},
        "dtype": jnp.dtype(pipeline.dtype).name,
    }
    reader = _Reader(pipeline, options, log, settings)
    total = sum(len(job.outputs) for job in jobs)
    batch_size, devices = choose_batch(total, options.batch_size, jax.local_devices())
    failed = 0
    waiting: deque[tuple[_Read, int, int]] = deque()

    def regions() -> Iterator[tuple[Prepared, int, int]]:
        nonlocal failed
        for read in _in_order(jobs, reader):
            bar.update(len(read.job.outputs) - len(read.missing))
            if read.error is not None:
                failed += 1
                report(f"error: {read.error}")
                bar.update(len(read.missing))
                if log is not None:
                    for index in read.missing:
                        log.add({**_entry(read.job, index), "error": read.error})
            elif read.case is not None:
                for index in read.missing:
                    for region in read.case.regions:
                        waiting.append((read, index, len(read.case.regions)))
                        yield region, read.job.seed, index

    def write(read: _Read, index: int, images: list[np.ndarray], seconds: float) -> None:
        assert read.case is not None
        write_image(read.job.outputs[index], read.case.put_back(images, options.feather), read.case.photo.metadata)
        if log is not None:
            made = {"seconds": round(seconds, 4), "settings": settings, "fingerprint": read.fingerprints[index]}
            log.add({**_entry(read.job, index), **made})

    with (
        # disable=None: a bar on a terminal only.
        tqdm(total=total, unit="image", disable=None if progress and total > 1 else True) as bar,
        ThreadPoolExecutor(WRITERS, "write") as writers,
    ):
        written: deque[Future[None]] = deque()
        collected: list[np.ndarray] = []
        spent, last = 0.0, time.perf_counter()
        for batch in pipeline.generate_batches(regions(), options.choices, batch_size=batch_size, devices=devices):
            now = time.perf_counter()
            share, last = (now - last) / len(batch), now
            for image in batch:
                read, index, parts = waiting.popleft()
                collected.append(image)
                spent += share
                if len(collected) == parts:
                    written.append(writers.submit(write, read, index, collected, spent))
                    collected, spent = [], 0.0
                    bar.update()
            while len(written) > _AHEAD:
                written.popleft().result()
        for future in written:
            future.result()
    return failed


def _entry(job: Job, index: int) -> dict[str, Any]:
    return {"id": job.case.id, "image": index, "output": job.outputs[index].name, "seed": job.seed}


def _in_order(jobs: Sequence[Job], read: Callable[[Job], _Read]) -> Iterator[_Read]:
    """The cases, some of them read ahead by threads."""
    with ThreadPoolExecutor(READERS, "read") as readers:
        ahead: deque[Future[_Read]] = deque()
        try:
            for job in jobs:
                ahead.append(readers.submit(read, job))
                if len(ahead) > _AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class _Reader:
    """Reads cases; what several of them share is read once. Called by several threads."""

    def __init__(
        self, pipeline: Pipeline, options: RunOptions, log: ResultsLog | None, settings: dict[str, Any]
    ) -> None:
        self._model, self._options, self._log = pipeline.config.model, options, log
        self._box_outline: BoxOutline = settings["box_outline"]
        # One scene with many products, or a few scenes in turn.
        self._photo = functools.lru_cache(maxsize=4)(read_photo)
        self._digest = functools.lru_cache(maxsize=None)(_digest)
        self._common: dict[str, Any] = {}
        if log is not None:
            compiled = sampler_settings(pipeline.config, options.choices, pipeline.dtype)
            self._common = {"model": fingerprint(pipeline.params), "compiled": repr(compiled), "settings": settings}

    def __call__(self, job: Job) -> _Read:
        every = tuple(range(len(job.outputs)))
        try:
            fingerprints = self._fingerprints(job)
            if self._log is not None:
                done = [self._log.is_done(output, of) for output, of in zip(job.outputs, fingerprints, strict=True)]
                every = tuple(index for index in every if not done[index])
            return _Read(job, self._prepare(job) if every else None, None, fingerprints, every)
        except InputError as error:
            where = f"{job.case.where}: " if job.case.where else ""
            return _Read(job, None, f"{where}{error}", (), every)
        except MemoryError:
            return _Read(job, None, f"{job.case.where or job.case.id}: too large for this machine's memory", (), every)

    def _prepare(self, job: Job) -> PreparedPhoto:
        case, options = job.case, self._options
        return read_case(
            self._photo(case.scene),
            case.mask,
            case.reference,
            self._model,
            box=case.box,
            context=options.context,
            keep_backdrop=options.keep_backdrop,
            regions=options.regions,
            box_outline=self._box_outline,
        )

    def _fingerprints(self, job: Job) -> tuple[str, ...]:
        """Of each image: everything that it depends on."""
        if self._log is None:
            return ()
        case = job.case
        files = {"scene": case.scene, "mask": case.mask, "reference": case.reference}
        inputs = {name: self._digest(path, name) for name, path in files.items() if path is not None}
        common = {**self._common, **inputs, "box": case.box, "seed": job.seed}
        return tuple(
            hashlib.sha256(json.dumps({**common, "image": index}, sort_keys=True).encode()).hexdigest()[:32]
            for index in range(len(job.outputs))
        )


def _digest(path: Location, what: str) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except LocationError as error:
        missing = isinstance(path, Path) and not path.exists()
        raise InputError(f"{what} {path}: {'no such file' if missing else f'cannot be read ({error})'}") from None
