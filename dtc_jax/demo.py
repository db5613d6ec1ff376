"""The demonstration: sample the committed examples with the shipped model and measure the results.

    python -m dtc_jax.demo
    python -m dtc_jax.demo --output-dir output/demo --checkpoint runs/tiny

Writes a contact sheet, the single results and metrics.json. Errors of use: exit code 2 and one line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

import dtc_jax
from dtc_jax.arguments import UsageError, parse_arguments, reports_errors
from dtc_jax.config import ConfigError
from dtc_jax.data.images import InputError, read_scene, write_image
from dtc_jax.data.manifest import Case, read_manifest
from dtc_jax.data.sheets import contact_sheet
from dtc_jax.evaluation.cases import NUM_DISTRACTORS
from dtc_jax.evaluation.examples import MANIFEST_FILE, example_cases, write_examples
from dtc_jax.evaluation.fidelity import HIDDEN_TRUTH, describe_device, score_results
from dtc_jax.evaluation.generators import describe_settings
from dtc_jax.evaluation.report import Scores, markdown_table, summarize, write_json
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.prepare import Prepared
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.weights.model_folder import ModelFolderError, shipped_model_folder

EXAMPLES_FOLDER = Path(dtc_jax.__file__).parent.parent / "examples" / "demo"
"""The examples of the repository that this package lies in."""

WHOLE_SCENE = 4.0
"""So much context round the mask that the window is the whole scene, which is of the model's own size."""

SHEET_COLUMNS = ("scene", "mask", "reference", "hint", "result", "truth")


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Sample the committed examples of products that the model has never seen, and measure the results."""

    output_dir: Path = Path("output/demo")
    """Folder for sheet.png, results/ID.png and metrics.json; made if absent."""
    examples: Path = EXAMPLES_FOLDER
    """Folder with the examples' manifest."""
    checkpoint: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the shipped one)")
    ] = None
    """Model folder or run folder."""
    batch_size: int = 8
    """Images per call of the compiled function."""
    regenerate: bool = False
    """Write the examples again (into --examples) from the procedural world, and do nothing else."""


@reports_errors(InputError, ModelFolderError, ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 after an error of use."""
    arguments = parse_arguments(DemoArguments, sys.argv[1:] if argv is None else argv, "python -m dtc_jax.demo")
    if arguments.regenerate:
        enable_compilation_cache()
        print(f"examples: {write_examples(arguments.examples)}")
    else:
        run(arguments)
    return 0


def run(arguments: DemoArguments) -> dict[str, Any]:
    """Sample, measure, write and print; returns what metrics.json holds.

    Raises:
        UsageError: numbers out of range.
        InputError: examples that are absent or damaged, or an output that cannot be written.
        ModelFolderError, ConfigError: a checkpoint that cannot be loaded.
    """
    if arguments.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    manifest = arguments.examples / MANIFEST_FILE
    if not manifest.is_file():
        raise InputError(f"examples {manifest}: no such file; the repository has them in examples/demo (--examples)")
    examples = read_manifest(manifest)
    results_folder = arguments.output_dir / "results"
    try:
        results_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output folder {results_folder}: cannot be made ({error.strerror})") from None
    enable_compilation_cache()
    pipeline = Pipeline.load(arguments.checkpoint)
    truths = [_read_truth(example) for example in examples]
    cases = example_cases(examples, image_size=truths[0].shape[0])
    started = time.perf_counter()
    prepared, results = _sample(pipeline, examples, arguments.batch_size)
    seconds = time.perf_counter() - started
    for example, result in zip(examples, results, strict=True):
        write_image(results_folder / f"{example.id}.png", result)
    sheet = arguments.output_dir / "sheet.png"
    write_image(sheet, draw_sheet(examples, prepared, results, truths))

    masks = np.stack([case.mask[..., None] for case in prepared])
    measured = score_results(np.stack(results), np.stack(truths), masks, cases.easy, cases.hard)
    scores = Scores(*(np.asarray(values, np.float64) for values in measured))
    report = _report(pipeline, examples, scores, cases.is_box, seconds)
    write_json(arguments.output_dir / "metrics.json", report)
    _print(report, sheet, results_folder, arguments.output_dir / "metrics.json")
    return report


def draw_sheet(
    examples: Sequence[Case], prepared: Sequence[Prepared], results: Sequence[np.ndarray], truths: Sequence[np.ndarray]
) -> UInt8[np.ndarray, "h w 3"]:
    """The contact sheet: a row for each example. Of the shipped model's it is the one in docs/images."""
    rows = [
        [case.scene, case.mask * np.uint8(255), read_scene(example.reference), case.batch["hint"], result, truth]
        for example, case, result, truth in zip(examples, prepared, results, truths, strict=True)
        if example.reference is not None
    ]
    return np.array(contact_sheet(rows, SHEET_COLUMNS, scale=2, row_labels=[example.id for example in examples]))


def _sample(pipeline: Pipeline, examples: Sequence[Case], batch_size: int) -> tuple[list[Prepared], list[np.ndarray]]:
    """Prepared cases and results, by the same calls as sample.py with --manifest and --context 4."""
    prepared = [
        pipeline.prepare(example.scene, example.mask, example.reference, box=example.box, context=WHOLE_SCENE)
        for example in examples
    ]
    jobs = ((case, example.seed or 0, 0) for case, example in zip(prepared, examples, strict=True))
    images = tqdm(
        pipeline.generate(jobs, batch_size=min(batch_size, len(examples))),
        total=len(examples),
        desc="sampling",
        unit="image",
        disable=None,
    )
    return prepared, [case.put_back(image) for case, image in zip(prepared, images, strict=True)]


def _read_truth(example: Case) -> np.ndarray:
    if example.truth is None:
        raise InputError(f"{example.where}: an example needs a 'truth'")
    return read_scene(example.truth)


def _report(
    pipeline: Pipeline, examples: Sequence[Case], scores: Scores, is_box: np.ndarray, seconds: float
) -> dict[str, Any]:
    per_example = {
        example.id: {
            "ssim": float(scores.ssim[i]),
            "psnr": float(scores.psnr[i]),
            "hard_retrieval": bool(scores.hard_retrieval[i]),
            "easy_retrieval": bool(scores.easy_retrieval[i]),
            "mask": "box" if is_box[i] else "fine",
        }
        for i, example in enumerate(examples)
    }
    return {
        "examples": per_example,
        "mean": {measure: float(values.mean()) for measure, values in scores._asdict().items()},
        "summary": summarize(scores, is_box, seed=0),
        "settings": describe_settings(pipeline),
        "hidden_truth": HIDDEN_TRUTH,
        "device": describe_device(),
        "seconds": {"sampling": seconds},
        "card": _card(),
    }


def _card() -> Any:
    """The shipped model's figures on 512 products; None where there are none."""
    try:
        return json.loads((shipped_model_folder() / "metrics.json").read_text())
    except (ModelFolderError, OSError, json.JSONDecodeError):
        return None


def _print(report: dict[str, Any], sheet: Path, results: Path, metrics: Path) -> None:
    print(f"{'example':<22} {'SSIM':>6} {'PSNR':>7}  told from {NUM_DISTRACTORS} hard distractors")
    for name, figures in report["examples"].items():
        told = "yes" if figures["hard_retrieval"] else "no"
        print(f"{name:<22} {figures['ssim']:6.3f} {figures['psnr']:7.2f}  {told}")
    print("\nThese examples, inside the mask, with 95 % bootstrap intervals:\n")
    print(markdown_table({"result": report["summary"]}))
    card = report["card"]
    if isinstance(card, dict) and isinstance(card.get("rows"), dict):
        print(f"\nThe shipped model on {card['protocol']['num_products']} held-out products:\n")
        print(markdown_table(card["rows"]))
    print(f"\nsampling: {report['seconds']['sampling']:.1f} s with compilation, on {report['device']}")
    print(f"sheet:    {sheet}\nresults:  {results}\nmetrics:  {metrics}")


if __name__ == "__main__":
    sys.exit(main())
