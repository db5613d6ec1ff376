"""What a command is to sample: cases, the files that their results go into, and which process makes which."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from dtc_jax.arguments import UsageError
from dtc_jax.cluster import ClusterOptions, connect, launched, share_of_gpus, visible_gpus
from dtc_jax.data.images import InputError
from dtc_jax.data.locations import Location, images_in, is_remote, local_path
from dtc_jax.data.manifest import Case


@dataclass(frozen=True)
class Job:
    """One case, and the file for each of its images."""

    case: Case
    outputs: tuple[Path, ...]
    seed: int


def numbered(output: Path, count: int) -> tuple[Path, ...]:
    """The file's name itself for one image; stem-00, stem-01 and so on for several."""
    if count == 1:
        return (output,)
    digits = max(2, len(str(count - 1)))
    return tuple(output.with_name(f"{output.stem}-{index:0{digits}d}{output.suffix}") for index in range(count))


def jobs_in_folder(cases: Iterable[Case], folder: Path, num_images: int, seed: int) -> list[Job]:
    """A job for every case, or for every product of a case whose reference is a folder, with outputs FOLDER/ID.png.

    Raises:
        InputError: the folder cannot be made, two images would have one name, or one would take an input's place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {folder}: cannot be made ({error.strerror})") from None
    jobs = [
        Job(case, numbered(folder / f"{case.id}.png", num_images), seed if case.seed is None else case.seed)
        for given in cases
        for case in each_reference(given)
    ]
    _check_names(jobs)
    return jobs


def each_reference(case: Case) -> list[Case]:
    """The case, or one for every image in the folder that its reference names; their ids end in the image's name.

    Raises:
        InputError: a folder without images.
    """
    if case.reference is None or is_remote(case.reference) or not os.path.isdir(case.reference):
        return [case]
    files = images_in(Path(case.reference))
    if not files:
        where = f"{case.where}: " if case.where else ""
        raise InputError(f"{where}reference {case.reference}: a folder without images; put photos of products into it")
    stems = [path.stem for path in files]
    prefix = f"{case.id}-" if case.id else ""
    return [
        dataclasses.replace(case, id=prefix + (path.stem if stems.count(path.stem) == 1 else path.name), reference=path)
        for path in files
    ]


def _check_names(jobs: Sequence[Job]) -> None:
    inputs = {
        real
        for job in jobs
        for path in (job.case.scene, job.case.mask, job.case.reference)
        if path is not None and (real := _real_path(path)) is not None
    }
    seen: dict[Path, Job] = {}
    for job in jobs:
        for output in job.outputs:
            if output in seen:
                where = f"{job.case.where}: " if job.case.where else ""
                raise InputError(f"{where}{output.name} is the result of {seen[output].case.id!r}, too; rename one id")
            if _real_path(output) in inputs:
                raise InputError(f"output {output}: is an input, which would be lost; name another folder")
            seen[output] = job


def _real_path(location: Location) -> str | None:
    """The path without links; None for what lies elsewhere, and for what can be no file's name."""
    path = local_path(location)
    try:
        return None if path is None else os.path.realpath(path)
    except ValueError:  # an embedded NUL
        return None


def process_share(num_processes: int | None, process_id: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which process this is and of how many: by the flags, or by what started them (SLURM, Open MPI, a TPU's hosts).

    Processes need nothing of each other: except on TPUs, where the runtime wants all hosts, they are not connected, and
    one that ends does not stop the others. Several on a machine share its GPUs out.

    Raises:
        UsageError: flags that do not go together.
        ConfigError: a launcher that does not say enough.
    """
    if num_processes is not None or process_id is not None:
        if num_processes is None or process_id is None:
            raise UsageError("--num-processes and --process-id go together")
        if not 0 <= process_id < num_processes:
            raise UsageError(f"--process-id {process_id} must be from 0 to {num_processes - 1}, below --num-processes")
        return process_id, num_processes
    found = launched(environment)
    if found is None:
        return 0, 1
    if found.count is None or found.index is None:
        connect(ClusterOptions(), environment)
        return jax.process_index(), jax.process_count()
    gpus = visible_gpus(environment)
    if gpus and found.local_count is not None and found.local_index is not None:
        own = share_of_gpus(found.local_count, found.local_index, gpus)
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, own)))
    return found.index, found.count
