"""The command line of the evaluation: a model on held-out generated products, or results in files.

    python -m dtc_jax.evaluate --checkpoint runs/tiny --num-products 512 --output metrics.json --sheet sheet.png
    python -m dtc_jax.evaluate --compare no_hint=runs/tiny_no_hint
    python -m dtc_jax.evaluate images --results results --manifest cases.jsonl --clip clip-vit-base-patch32

The first word is what is measured: `products` (which may be left out) or `images` (`dtc_jax.evaluate_images`).
Prints a table and writes the figures with their protocol as JSON. Errors of use: exit code 2 and one line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dtc_jax import evaluate_images
from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.data.images import InputError, check_output, write_image
from dtc_jax.data.sheets import contact_sheet
from dtc_jax.evaluation.cases import MAX_CASES, MAX_SEED, NUM_DISTRACTORS, Cases
from dtc_jax.evaluation.fidelity import BASELINES, evaluate_fidelity, hide_truth
from dtc_jax.evaluation.generators import describe_settings, pipeline_generator
from dtc_jax.evaluation.report import check_json_output, markdown_table, write_json
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.inference.settings import CHECKPOINTS_OWN, SamplingChoices
from dtc_jax.weights.model_folder import ModelFolderError
from dtc_jax.weights.tensors import WeightsError

_PROGRAM = "python -m dtc_jax.evaluate"
_RESERVED_ROWS = ("model", *BASELINES)


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure a model on held-out generated products: retrieval among 32, SSIM and PSNR in the mask.

    Results in files, of whatever model, are measured by python -m dtc_jax.evaluate images (which has its own --help).
    """

    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    num_products: int = 512
    """Held-out products, one case each."""
    output: Path | None = None
    """JSON file to write: protocol, figures with intervals, device, seconds."""
    sheet: Path | None = None
    """PNG to write: a contact sheet of the first cases."""
    sheet_rows: int = 16
    """Rows of the contact sheet."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingChoices] = CHECKPOINTS_OWN
    batch_size: int = 32
    """Cases at a time; the figures do not depend on it."""
    seed: int = 0
    """Seed of products, scenes and noise."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ...")] = ()
    """Further checkpoints, measured on the same cases and noise."""


@reports_errors(InputError, ModelFolderError, ConfigError, WeightsError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["images"]:
        evaluate_images.run(parse_arguments(evaluate_images.ImagesArguments, words[1:], f"{_PROGRAM} images"))
    else:
        words = words[1:] if words[:1] == ["products"] else words
        if words and not words[0].startswith("-"):
            raise UsageError(f"{words[0]!r}: what is measured is products or images (see {_PROGRAM} --help)")
        run(parse_arguments(EvaluateArguments, words, _PROGRAM))
    return 0


def run(arguments: EvaluateArguments) -> dict[str, Any]:
    """Measure, print the table, write the files; returns what is written as JSON.

    Raises:
        UsageError: numbers out of range, or flags that do not go together.
        InputError: an output that cannot be written.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    _check(arguments)
    enable_compilation_cache()
    pipeline = Pipeline.load(arguments.checkpoint)
    others = {name: Pipeline.load(folder) for name, folder in _parse_compare(arguments.compare).items()}
    sizes = _sizes(pipeline.config)
    for name, other in others.items():
        if _sizes(other.config) != sizes:
            raise UsageError(f"--compare {name}: its image and reference sizes are {_sizes(other.config)}, not {sizes}")
    settings = {
        "checkpoint": str(arguments.checkpoint) if arguments.checkpoint else "the shipped model",
        **describe_settings(pipeline, arguments.sampling),
        "batch_size": arguments.batch_size,
    }
    rows: list[list[np.ndarray]] = []

    def keep_rows(cases: Cases, results: Mapping[str, np.ndarray]) -> None:
        for i in range(min(len(cases.truth), arguments.sheet_rows - len(rows))):
            scene = hide_truth(cases.truth[i], cases.mask[i])
            shown = [results[name][i] for name in ("naive_paste", *others, "model")]
            rows.append([scene, cases.mask[i] * np.uint8(255), cases.reference[i], *shown, cases.truth[i]])

    report = evaluate_fidelity(
        pipeline_generator(pipeline, arguments.sampling),
        num_products=arguments.num_products,
        image_size=sizes[0],
        reference_size=sizes[1],
        batch_size=min(arguments.batch_size, arguments.num_products),
        seed=arguments.seed,
        others={name: pipeline_generator(other, arguments.sampling) for name, other in others.items()},
        settings=settings,
        on_batch=keep_rows if arguments.sheet else None,
    )
    print_report(report)
    if arguments.output is not None:
        write_json(arguments.output, report)
        print(f"figures: {arguments.output}")
    if arguments.sheet is not None:
        columns = ["scene", "mask", "reference", "naive paste", *others, "result", "truth"]
        write_image(arguments.sheet, np.asarray(contact_sheet(rows[: arguments.num_products], columns, scale=2)))
        print(f"sheet: {arguments.sheet}")
    return report


def print_report(report: Mapping[str, Any]) -> None:
    """The table, and below it what a reader has to know to believe it."""
    print(markdown_table(report["rows"]))
    protocol, settings = report["protocol"], report["settings"]
    print(
        f"\n{protocol['num_products']} held-out products at {protocol['image_size']} pixels, seed {protocol['seed']}; "
        f"{settings['num_inference_steps']} steps of {settings['solver']}, guidance {settings['guidance_scale']} "
        f"(unconditional: {settings['unconditional']}); [95 % bootstrap intervals]; retrieval among "
        f"{NUM_DISTRACTORS + 1}, chance {1 / (NUM_DISTRACTORS + 1):.3f}; "
        f"{report['seconds']['generation']['model']:.1f} s of sampling, {report['seconds']['total']:.1f} s in all, "
        f"on {report['device']}"
    )


def _check(arguments: EvaluateArguments) -> None:
    if not 1 <= arguments.num_products <= MAX_CASES:
        raise UsageError(f"--num-products must be from 1 to {MAX_CASES}, not {arguments.num_products}")
    if arguments.batch_size < 1 or arguments.sheet_rows < 1:
        raise UsageError("--batch-size and --sheet-rows must be at least 1")
    if not 0 <= arguments.seed <= MAX_SEED:
        raise UsageError(f"--seed must be from 0 to {MAX_SEED}, not {arguments.seed}")
    _parse_compare(arguments.compare)
    if arguments.output is not None:
        check_json_output(arguments.output)
    if arguments.sheet is not None:
        check_output(arguments.sheet)


def _parse_compare(pairs: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for pair in pairs:
        name, separator, folder = pair.partition("=")
        if not (name and separator and folder):
            raise UsageError(f"--compare {pair}: needs NAME=DIR")
        if name in folders or name in _RESERVED_ROWS:
            raise UsageError(f"--compare {name}: this row's name is taken; choose another")
        folders[name] = Path(folder)
    return folders


def _sizes(config: ExperimentConfig) -> tuple[int, int]:
    return config.model.image_size, config.model.reference_size


if __name__ == "__main__":
    sys.exit(main())
