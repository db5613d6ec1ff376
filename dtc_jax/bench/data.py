"""`python -m dtc_jax.bench data`: how fast records become batches on one CPU core, and whether memory stays flat.

Prints two speeds: samples per second of wall clock, which other work on the machine slows down, and samples per second
of CPU time, which it hardly does.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from dtc_jax import presets
from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.bench.synthetic import synthetic_records, write_data_set
from dtc_jax.config import ConfigError, DataConfig
from dtc_jax.data.pipeline import BatchStream, RecordReader

WARM_UP = 0.1
"""Share of the batches after which memory is compared: buffers are full by then."""


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Measure the input pipeline: prepared records to batches of 512 pixels, with every augmentation."""

    path: str | None = None
    """Prepared data set, local or on a bucket; without one, pictures are made up and written to a temporary folder."""
    split: str = "train"
    """Its split."""
    records: int = 512
    """Records that are made up."""
    batches: int = 200
    """Batches that are prepared."""
    batch_size: int = 8
    """Samples in each."""
    cores: int = 1
    """CPU cores that the measurement keeps to; 0 takes all."""
    workers: int = 0
    """Worker processes, see data.workers."""
    threads: int = 2
    """Threads, see data.threads."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print what was measured; returns the exit code (2 for errors of use, each one line)."""
    try:
        arguments = parse_arguments(DataArguments, argv, "python -m dtc_jax.bench data")
        for name in ("records", "batches", "batch_size", "threads"):
            if getattr(arguments, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
        keep_to_cores(arguments.cores)
        with nullcontext(None) if arguments.path else tempfile.TemporaryDirectory(prefix="dtc-bench-") as scratch:
            if scratch is not None:
                size = presets.sd15().image_size
                write_data_set(Path(scratch), {arguments.split: synthetic_records(arguments.records, size)}, size)
            measure(arguments, arguments.path or str(scratch))
    except (UsageError, ConfigError, OSError) as error:
        print(f"dtc_jax.bench data: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def keep_to_cores(count: int) -> None:
    """Keep this process, and all threads and processes that it starts, to some of its CPU cores.

    Raises:
        ConfigError: there are not so many, or the system cannot do it.
    """
    if count == 0:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError("--cores: this system cannot keep a process to some cores; give --cores 0")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise ConfigError(f"--cores {count}: there are {len(available)}")
    # The last ones: the first core often serves the system's interrupts.
    os.sched_setaffinity(0, available[-count:])


def measure(arguments: DataArguments, path: str) -> None:
    """Prepare the batches and print the figures."""
    data = DataConfig(
        kind="records", path=path, split=arguments.split, workers=arguments.workers, threads=arguments.threads
    )
    reader = RecordReader(data, presets.sd15())
    stored = sum(file.stat().st_size for file in reader.data_set.folder.iterdir() if "array_record" in file.name)
    count = sum(reader.data_set.splits.values())
    print(
        f"data set    {reader.data_set.folder}: {reader.count} records of {reader.data_set.size} pixels, "
        f"{stored / count / 1000:.0f} kB each"
    )
    stream = BatchStream(reader, range(arguments.batch_size), arguments.batch_size, 0, arguments.batches + 1)
    replaced = 0
    memory: list[int] = []
    with closing(stream):
        next(stream)  # opens files, starts threads and workers
        started, cpu = time.perf_counter(), cpu_seconds()
        for number in range(arguments.batches):
            replaced += len(next(stream)[1])
            if number >= int(WARM_UP * arguments.batches):
                memory.append(resident_mebibytes())
        wall = time.perf_counter() - started
        cpu = cpu_seconds() - cpu
    samples = arguments.batches * arguments.batch_size
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"pipeline    {arguments.workers} workers, {arguments.threads} threads, {arguments.cores or 'all'} core(s)")
    print(f"samples     {samples} in {arguments.batches} batches, {replaced} broken records replaced")
    print(f"wall clock  {samples / wall:.1f} samples/s (load of the machine: {load})")
    if arguments.workers:
        print("CPU time    not measured: that of worker processes is not this one's")
    else:
        print(f"CPU time    {samples / cpu:.1f} samples/s per core, {1000 * cpu / samples:.2f} ms per sample")
    first, last = memory[1:2] or memory, memory[-1:]
    print(
        f"memory      {first[0]} MiB after a tenth of the batches, {max(memory)} MiB at most, {last[0]} MiB at the end"
    )


def cpu_seconds() -> float:
    """User and system time of this process and its threads so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_mebibytes() -> int:
    """Memory of this process that is in use now; where the system does not tell, the most that ever was."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
