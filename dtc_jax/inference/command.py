"""The command line of sampling: one case by flags, or many by a manifest.

    sample.py --scene room.jpg --mask mask.png --reference chair.jpg --output out.png
    sample.py --manifest cases.jsonl --output-dir results

Errors of use end with exit code 2 and one line on the standard error output.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.config import ConfigError, ModelConfig
from dtc_jax.data.images import InputError, check_output, read_profile, write_image
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.window import DEFAULT_CONTEXT
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import Prepared, read_case
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices, resolve_sampling
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.run_folder import checkpoint_config

_REQUIRED = tyro.conf.arg(metavar="FILE", help_behavior_hint="(required without --manifest)")


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Paint a product, given one photo of it, into a masked region of a scene."""

    scene: Annotated[Path | None, _REQUIRED] = None
    """Photo to paint into, of any size."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(this or --box)")] = None
    """Region to fill: an image of the scene's displayed size, white (128 and more) inside."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint="(this or --mask)")] = None
    """Region to fill as a box in the scene's pixels, X1 and Y1 exclusive."""
    reference: Annotated[Path | None, _REQUIRED] = None
    """Photo of the product, best on white or transparent."""
    output: Annotated[Path | None, _REQUIRED] = None
    """PNG to write, of the scene's size and equal to it outside the mask; with --num-images stem-00.png and so on."""
    manifest: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(in place of the above)")] = None
    """Many cases: JSONL with id, scene, mask or box, reference, and optionally seed; paths relative to it."""
    output_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(with --manifest)")] = None
    """Folder for ID.png of every case; made if absent."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    seed: int = 0
    """Seed of the noise; the same seed gives the same image."""
    num_images: int = 1
    """How many different results for each case."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingChoices] = CHECKPOINTS_OWN
    context: float = DEFAULT_CONTEXT
    """How much of the scene the model sees round the mask, as a share of the mask's larger side."""
    keep_backdrop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave a reference's plain, light backdrop as it is; otherwise it is made white, which the model knows best."""


@dataclass(frozen=True)
class _Job:
    case: Case
    outputs: tuple[Path, ...]
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    try:
        arguments = parse_arguments(SampleArguments, sys.argv[1:] if argv is None else argv, "sample.py")
        run(arguments)
    except (UsageError, InputError, ModelFolderError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(arguments: SampleArguments) -> None:
    """Sample what the arguments ask for and write it.

    Raises:
        UsageError: flags that do not go together.
        InputError: an input or output that cannot be used.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    if arguments.num_images < 1:
        raise UsageError(f"--num-images must be at least 1, not {arguments.num_images}")
    if not 0 <= arguments.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to {2**32 - 1}, not {arguments.seed}")
    jobs = _jobs_of_manifest(arguments) if arguments.manifest else [_job_of_flags(arguments)]
    for job in jobs:
        for output in job.outputs:
            check_output(output)
    # What can be wrong with the first case is said before the weights are read.
    config = checkpoint_config(arguments.checkpoint)
    resolve_sampling(config, arguments.sampling)
    first = _prepare(jobs[0], config.model, arguments)
    enable_compilation_cache()
    pipeline = Pipeline.load(arguments.checkpoint)
    waiting: deque[tuple[Prepared, _Job, Path]] = deque()

    def cases() -> Iterator[tuple[Prepared, int, int]]:
        for number, job in enumerate(jobs):
            case = first if number == 0 else _prepare(job, config.model, arguments)
            for index, output in enumerate(job.outputs):
                waiting.append((case, job, output))
                yield case, job.seed, index

    total = sum(len(job.outputs) for job in jobs)
    # disable=None: a bar on a terminal only.
    images = pipeline.generate(cases(), arguments.sampling)
    images = tqdm(images, total=total, unit="image", disable=None if total > 1 else True)
    for image in images:
        case, job, output = waiting.popleft()
        write_image(output, case.put_back(image), read_profile(job.case.scene))


def _prepare(job: _Job, model: ModelConfig, arguments: SampleArguments) -> Prepared:
    case = job.case
    try:
        return read_case(
            case.scene,
            case.mask,
            case.reference,
            model,
            box=case.box,
            context=arguments.context,
            keep_backdrop=arguments.keep_backdrop,
        )
    except InputError as error:
        raise InputError(f"{case.where}: {error}" if case.where else str(error)) from None


def _job_of_flags(arguments: SampleArguments) -> _Job:
    if arguments.output_dir is not None:
        raise UsageError("--output-dir goes with --manifest; use --output")
    scene, reference, output = (_given(getattr(arguments, name), name) for name in ("scene", "reference", "output"))
    if (arguments.mask is None) == (arguments.box is None):
        raise UsageError("give --mask or --box, one of the two")
    box = None if arguments.box is None else _parse_box(arguments.box)
    case = Case(id=output.stem, scene=scene, mask=arguments.mask, box=box, reference=reference)
    return _Job(case, _numbered(output, arguments.num_images), arguments.seed)


def _jobs_of_manifest(arguments: SampleArguments) -> list[_Job]:
    for name in ("scene", "mask", "box", "reference", "output"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} does not go with --manifest")
    folder = arguments.output_dir
    if folder is None:
        raise UsageError("--output-dir is missing; --manifest needs it")
    cases = read_manifest(_given(arguments.manifest, "manifest"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {folder}: cannot be made ({error.strerror})") from None
    return [
        _Job(
            case,
            _numbered(folder / f"{case.id}.png", arguments.num_images),
            arguments.seed if case.seed is None else case.seed,
        )
        for case in cases
    ]


def _given(value: Path | None, name: str) -> Path:
    if value is None:
        raise UsageError(f"--{name} is missing")
    return value


def _parse_box(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--box {text}: needs four whole numbers x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _numbered(output: Path, count: int) -> tuple[Path, ...]:
    if count == 1:
        return (output,)
    digits = max(2, len(str(count - 1)))
    return tuple(output.with_name(f"{output.stem}-{index:0{digits}d}{output.suffix}") for index in range(count))
