"""The command line of sampling: one case by flags, or many by a manifest or a folder of products.

    sample.py --scene room.jpg --mask mask.png --reference chair.jpg --output out.png
    sample.py --scene room.jpg --mask mask.png --reference chairs/ --output-dir results
    sample.py --manifest cases.jsonl --output-dir results

Errors of use end with exit code 2 and one line on the standard error output; so does a case that cannot be used, if it
is the only one. Of many it is reported, the others are made, and the exit code is 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError
from dtc_jax.data.images import InputError, check_output, remove_unfinished
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.regions import Regions
from dtc_jax.data.window import DEFAULT_CONTEXT
from dtc_jax.inference.checks import check_context, check_feather, check_reference
from dtc_jax.inference.jobs import Job, jobs_in_folder, numbered, process_share
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import read_case
from dtc_jax.inference.results import ResultsLog
from dtc_jax.inference.run_jobs import RunOptions, run_jobs
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices, resolve_sampling
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.run_folder import checkpoint_config

_REQUIRED = tyro.conf.arg(metavar="FILE", help_behavior_hint="(required without --manifest)")
_REFERENCE = tyro.conf.arg(metavar="FILE", help_behavior_hint="(as --scene; not for a model tuned on one product)")


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Paint a product, given one photo of it, into a masked region of a scene."""

    scene: Annotated[Path | None, _REQUIRED] = None
    """Photo to paint into, of any size."""
    mask: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(this or --box)")] = None
    """Region to fill: an image of the scene's displayed size, white (128 and more) inside."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint="(this or --mask)")] = None
    """Region to fill as a box in the scene's pixels, X1 and Y1 exclusive."""
    reference: Annotated[Path | None, _REFERENCE] = None
    """Photo of the product, best on white or transparent; or a folder of such photos, with --output-dir."""
    output: Annotated[Path | None, _REQUIRED] = None
    """PNG to write, of the scene's size and equal to it outside the mask; with --num-images stem-00.png and so on."""
    manifest: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(in place of the above)")] = None
    """Many cases: JSONL with id, scene, mask or box, reference (a photo, or a folder for a case each; none for a model
    tuned on one product), and optionally seed; paths relative to it."""
    output_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(with many cases)")] = None
    """Folder for ID.png of every case and results.jsonl; made if absent. What is there of the same inputs and settings
    is not made again: the same line goes on after an interruption. A case that cannot be used is reported with its line
    and the others are made; the exit code is then 1."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: by the devices)")] = (
        None
    )
    """Images at once, on all devices of this process together; rounded up to a multiple of the devices' number."""
    catalogue: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """References' tokens that python -m dtc_jax.inference.catalogue has computed; others are computed here."""
    num_processes: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: what SLURM and the like say)")
    ] = None
    """How many processes share the cases; each is started with this line, and all see the same --output-dir."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(with the above)")] = None
    """Which of them this is, from 0."""
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
    regions: Regions = "each"
    """What a mask of several parts means: the product in each of them, in the largest, or one over all together."""
    feather: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: see below)")] = None
    """Pixels along the mask's edge, inside it, in which the scene blends into the result; by default as many as one of
    the model's pixels covers, and none where the result is not enlarged."""
    keep_backdrop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave a reference's plain, light backdrop as it is; otherwise it is made white, which the model knows best."""


@reports_errors(InputError, ModelFolderError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 if some of many cases could not be used, 2 after an error of use."""
    arguments = parse_arguments(SampleArguments, sys.argv[1:] if argv is None else argv, "sample.py")
    return 1 if run(arguments) else 0


def run(arguments: SampleArguments) -> int:
    """Sample what the arguments ask for and write it.

    Returns:
        How many of many cases could not be used; with a single one that is an error.

    Raises:
        UsageError: flags that do not go together.
        InputError: an input or output that cannot be used.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    for name in ("num_images", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if not 0 <= arguments.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to {2**32 - 1}, not {arguments.seed}")
    check_feather(arguments.feather)
    check_context(arguments.context)
    if arguments.reference is not None:
        check_reference(arguments.reference, checkpoint_config(arguments.checkpoint).model)
    many = arguments.manifest is not None or (arguments.reference is not None and arguments.reference.is_dir())
    return _run_many(arguments) if many else _run_one(arguments)


def _run_one(arguments: SampleArguments) -> int:
    job = _job_of_flags(arguments)
    for output in job.outputs:
        check_output(output, [job.case.scene, job.case.mask, job.case.reference])
    config = checkpoint_config(arguments.checkpoint)
    sampling = resolve_sampling(config, arguments.sampling)
    # What can be wrong with the case is said before the weights are read.
    case, options = job.case, _options(arguments)
    read_case(
        case.scene,
        case.mask,
        case.reference,
        config.model,
        box=case.box,
        context=options.context,
        keep_backdrop=options.keep_backdrop,
        regions=options.regions,
        box_outline=sampling.box_outline,
    )
    enable_compilation_cache()
    errors: list[str] = []
    run_jobs(_load(arguments), [job], options, report=errors.append)
    if errors:
        raise InputError(errors[0].removeprefix("error: "))
    for output in job.outputs:
        print(output)
    return 0


def _run_many(arguments: SampleArguments) -> int:
    jobs = _jobs_of_manifest(arguments) if arguments.manifest is not None else _jobs_of_folder(arguments)
    for job in jobs:
        check_output(job.outputs[0])
    resolve_sampling(checkpoint_config(arguments.checkpoint), arguments.sampling)
    process_id, num_processes = process_share(arguments.num_processes, arguments.process_id, os.environ)
    enable_compilation_cache()
    pipeline = _load(arguments)
    log = ResultsLog(jobs[0].outputs[0].parent, process_id, num_processes)
    own = jobs[process_id::num_processes]
    remove_unfinished(output for job in own for output in job.outputs)

    def report(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    try:
        failed = run_jobs(pipeline, own, _options(arguments), log, report)
    finally:
        log.merge([output.name for job in jobs for output in job.outputs])
    there = sum(len(job.outputs) for job in own) - log.made - log.failed
    print(f"{log.made} images painted, {there} there already: {log.path}")
    if failed:
        print(f"{failed} of {len(own)} cases could not be used; the others are done", file=sys.stderr)
    return failed


def _load(arguments: SampleArguments) -> Pipeline:
    pipeline = Pipeline.load(arguments.checkpoint)
    return pipeline if arguments.catalogue is None else pipeline.with_catalogue(arguments.catalogue)


def _options(arguments: SampleArguments) -> RunOptions:
    return RunOptions(
        choices=arguments.sampling,
        context=arguments.context,
        keep_backdrop=arguments.keep_backdrop,
        regions=arguments.regions,
        feather=arguments.feather,
        batch_size=arguments.batch_size,
    )


def _job_of_flags(arguments: SampleArguments) -> Job:
    if arguments.output_dir is not None:
        raise UsageError("--output-dir goes with --manifest or a folder as --reference; use --output")
    if arguments.num_processes is not None or arguments.process_id is not None:
        raise UsageError("--num-processes and --process-id go with --manifest or a folder as --reference")
    output = _given(arguments.output, "output")
    return Job(_case_of_flags(arguments, output.stem), numbered(output, arguments.num_images), arguments.seed)


def _jobs_of_folder(arguments: SampleArguments) -> list[Job]:
    if arguments.output is not None:
        raise UsageError("--output does not go with a folder as --reference; use --output-dir")
    folder = _given(arguments.output_dir, "output_dir")
    return jobs_in_folder([_case_of_flags(arguments, "")], folder, arguments.num_images, arguments.seed)


def _prompted(arguments: SampleArguments) -> bool:
    """Whether the checkpoint is tuned on one product and takes no reference."""
    return checkpoint_config(arguments.checkpoint).model.prompted


def _case_of_flags(arguments: SampleArguments, name: str) -> Case:
    scene, reference = _given(arguments.scene, "scene"), arguments.reference
    if reference is None and not _prompted(arguments):
        reference = _given(reference, "reference")
    if (arguments.mask is None) == (arguments.box is None):
        raise UsageError("give --mask or --box, one of the two")
    box = None if arguments.box is None else _parse_box(arguments.box)
    return Case(id=name, scene=scene, mask=arguments.mask, box=box, reference=reference)


def _jobs_of_manifest(arguments: SampleArguments) -> list[Job]:
    for name in ("scene", "mask", "box", "reference", "output"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} does not go with --manifest")
    folder = arguments.output_dir
    if folder is None:
        raise UsageError("--output-dir is missing; --manifest needs it")
    # What is wrong with one case's images is found when it is read, and does not stop the others.
    references = not _prompted(arguments)
    cases = read_manifest(_given(arguments.manifest, "manifest"), check_files=False, references=references)
    return jobs_in_folder(cases, folder, arguments.num_images, arguments.seed)


def _given(value: Path | None, name: str) -> Path:
    if value is None:
        raise UsageError(f"--{name.replace('_', '-')} is missing")
    return value


def _parse_box(text: str) -> tuple[int, int, int, int]:
    try:
        x0, y0, x1, y1 = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--box {text}: needs four whole numbers x0,y0,x1,y1") from None
    return x0, y0, x1, y1
