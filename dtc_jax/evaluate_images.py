"""`python -m dtc_jax.evaluate images`: measure results in files.

python -m dtc_jax.evaluate images --results results --manifest cases.jsonl --clip clip-vit-base-patch32
python -m dtc_jax.evaluate images --results results --truth truth --inception pt_inception-2015-12-05-6726825d.pth
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dtc_jax.arguments import UsageError
from dtc_jax.evaluation.feature_networks import FeatureNetwork, load_clip, load_dinov2, load_inception, load_lpips
from dtc_jax.evaluation.image_metrics import METRICS
from dtc_jax.evaluation.image_sets import ImageSet, from_folders, from_manifest, from_records, images_in
from dtc_jax.evaluation.measure import MeasureOptions, measure
from dtc_jax.evaluation.report import check_json_output, figures_table, write_json
from dtc_jax.inference.runtime import enable_compilation_cache
from dtc_jax.training.provenance import provenance

_OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(optional)")]
_OptionalFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")]
_Network = Annotated[str | None, tyro.conf.arg(metavar="PATH|ID", help_behavior_hint="(optional)")]


@dataclass(frozen=True, kw_only=True)
class ImagesArguments:
    """Measure results in files: CLIP score, DINOv2 similarity, FID, KID, CLIP-FID, LPIPS, SSIM, PSNR.

    Results are compared with folders (--truth, --masks, --references, paired by names without suffix), with a
    manifest's cases (--manifest), or with a prepared data set's records (--records). A figure whose images or weights
    are not given is left out, and the table says so. PATH|ID is published weights, as convert_weights.py import takes
    them: a local file or folder, or OWNER/NAME on the Hugging Face hub.
    """

    results: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of results."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=DIR ...")] = ()
    """Further folders of results, measured on the same cases: columns of the table."""
    manifest: _OptionalFile = None
    """Cases (JSONL); results are called after their ids, as sample.py --output-dir writes them."""
    records: _OptionalFolder = None
    """Prepared data set; results are called after the records' ids."""
    split: str = "test"
    """Of the prepared data set."""
    truth: _OptionalFolder = None
    """Folder of true images."""
    masks: _OptionalFolder = None
    """Folder of masks, white where the product is."""
    references: _OptionalFolder = None
    """Folder of the products' photos."""
    unpaired: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The folder --truth shows other things: it is compared as a set (FID, KID, CLIP-FID), names do not matter."""
    clip: _Network = None
    """CLIP (ViT-B/32 for published figures): CLIP score and CLIP-FID."""
    dinov2: _Network = None
    """DINOv2: DINOv2 similarity."""
    inception: _Network = None
    """pytorch-fid's Inception: FID and KID."""
    lpips: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")] = ()
    """LPIPS's whole state; or its heads (vgg.pth, alex.pth) and torchvision's vgg16 or alexnet."""
    paste_back: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Outside the mask, take the scene's pixels before measuring (but for the share that was changed there)."""
    resize: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(optional)")] = None
    """Bring all images but references to squares of this many pixels first."""
    tolerance: int = 0
    """A pixel outside the mask is changed if a channel differs by more than this, of 255 (JPEG files need some 10)."""
    batch_size: int = 32
    """Images at a time, on all devices together; figures do not depend on it."""
    set_resamples: int = 20
    """Resamples for the intervals of FID, KID and CLIP-FID, each as long as the figure itself; 0: no intervals."""
    seed: int = 0
    """Seed of the bootstraps."""
    output: _OptionalFile = None
    """JSON file to write: figures with intervals, protocol, versions."""
    per_image: _OptionalFile = None
    """JSON file to write: every figure of every image."""


def run(arguments: ImagesArguments) -> dict[str, Any]:
    """Measure, print the table, write the files; returns what is written as JSON.

    Raises:
        UsageError: flags that do not go together, numbers out of range.
        InputError: images that cannot be read, or do not belong together.
        ConfigError: no prepared data set.
        WeightsError: weights that cannot be used.
    """
    folders = _check(arguments)
    sets = {name: _image_set(arguments, folder) for name, folder in folders.items()}
    real = images_in(arguments.truth, "truth") if arguments.unpaired and arguments.truth is not None else None
    networks = _networks(arguments)
    enable_compilation_cache()
    options = MeasureOptions(
        paired=not arguments.unpaired,
        paste_back=arguments.paste_back,
        resize=arguments.resize,
        tolerance=arguments.tolerance,
        batch_size=arguments.batch_size,
        set_resamples=arguments.set_resamples,
        seed=arguments.seed,
    )
    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            print(f"warning: {text}", file=sys.stderr)
        warned.add(text)

    measured = {name: measure(images, networks, options, real=real, warn=warn) for name, images in sets.items()}
    first = next(iter(measured.values()))
    rows = {name: one["figures"] for name, one in measured.items()}
    report = {
        "protocol": _protocol(arguments, options, sets, networks, rows),
        "rows": rows,
        "left_out": first["left_out"],
        "warnings": sorted(warned),
        "versions": {"dtc_jax": version("dtc-jax"), "numpy": np.__version__, **provenance()},
        "device": first["device"],
        "seconds": {name: one["seconds"] for name, one in measured.items()},
    }
    print(figures_table(rows, METRICS))
    for metric, why in report["left_out"].items():
        print(f"left out: {METRICS[metric].label} ({why})")
    if arguments.output is not None:
        write_json(arguments.output, report)
        print(f"figures: {arguments.output}")
    if arguments.per_image is not None:
        write_json(arguments.per_image, {name: one["values"] for name, one in measured.items()})
        print(f"every image: {arguments.per_image}")
    return report


def _check(arguments: ImagesArguments) -> dict[str, Path]:
    """Refuse what does not go together; the folders of results by their column's name."""
    sources = [name for name in ("manifest", "records") if getattr(arguments, name) is not None]
    folders = [name for name in ("truth", "masks", "references") if getattr(arguments, name) is not None]
    if len(sources) == 2 or (sources and any(name != "truth" for name in folders)):
        raise UsageError(
            f"--{sources[0]} says what results are compared with; leave {_listed(sources[1:], folders)} out"
        )
    if sources and folders and not arguments.unpaired:
        raise UsageError(f"--{sources[0]} says what results are compared with; leave --truth out, or add --unpaired")
    if not sources and not folders:
        raise UsageError("results are compared with --truth (and --masks, --references), --manifest or --records")
    if arguments.unpaired and arguments.truth is None:
        raise UsageError("--unpaired compares with the set of images in --truth")
    if arguments.batch_size < 1 or arguments.set_resamples < 0 or not 0 <= arguments.tolerance <= 255:
        raise UsageError("--batch-size must be at least 1, --set-resamples at least 0, --tolerance from 0 to 255")
    if arguments.seed < 0:
        raise UsageError(f"--seed must not be negative, {arguments.seed}")
    if arguments.resize is not None and not 16 <= arguments.resize <= 4096:
        raise UsageError(f"--resize must be from 16 to 4096, not {arguments.resize}")
    if arguments.paste_back and not (sources or arguments.masks is not None):
        raise UsageError("--paste-back needs masks: --masks, --manifest or --records")
    for path in (arguments.output, arguments.per_image):
        if path is not None:
            check_json_output(path)
    named = {"results": arguments.results}
    for pair in arguments.compare:
        name, separator, folder = pair.partition("=")
        if not (name and separator and folder):
            raise UsageError(f"--compare {pair}: needs NAME=DIR")
        if name in named:
            raise UsageError(f"--compare {name}: this column's name is taken; choose another")
        named[name] = Path(folder)
    return named


def _listed(sources: list[str], folders: list[str]) -> str:
    return ", ".join(f"--{name}" for name in (*sources, *folders))


def _image_set(arguments: ImagesArguments, results: Path) -> ImageSet:
    if arguments.manifest is not None:
        images = from_manifest(results, arguments.manifest)
    elif arguments.records is not None:
        images = from_records(results, arguments.records, arguments.split)
    else:
        truth = None if arguments.unpaired else arguments.truth
        return from_folders(results, truth, arguments.masks, arguments.references)
    # What a case calls its truth shows another product than an unpaired result.
    return replace(images, has_truth=False) if arguments.unpaired else images


def _networks(arguments: ImagesArguments) -> dict[str, FeatureNetwork]:
    found: dict[str, FeatureNetwork] = {}
    if arguments.clip is not None:
        found["clip"] = load_clip(arguments.clip)
    if arguments.dinov2 is not None:
        found["dinov2"] = load_dinov2(arguments.dinov2)
    if arguments.inception is not None:
        found["inception"] = load_inception(arguments.inception)
    if arguments.lpips:
        found["lpips"] = load_lpips(arguments.lpips)
    return found


def _protocol(
    arguments: ImagesArguments,
    options: MeasureOptions,
    sets: Mapping[str, ImageSet],
    networks: Mapping[str, FeatureNetwork],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What was measured, and how, in words and numbers that allow to measure it again."""
    pairing = "unpaired: the images of --truth are a set" if arguments.unpaired else "by name"
    return {
        "sets": {name: images.where for name, images in sets.items()},
        "unpaired_truth": str(arguments.truth) if arguments.unpaired else None,
        "pairing": pairing,
        "paste_back": "outside the mask, the scene's pixels" if options.paste_back else "none: results as they are",
        "resize": f"all images but references to {options.resize} x {options.resize}, bicubic, antialiased"
        if options.resize
        else "none, but for what a figure says",
        "tolerance": options.tolerance,
        "seed": options.seed,
        "intervals": "95 %: of means, percentiles of 2000 bootstrap resamples of images; of FID, KID and CLIP-FID, "
        f"figure -+ 1.96 standard deviations over {options.set_resamples} bootstrap resamples",
        "metrics": {name: METRICS[name].protocol for name in METRICS if any(name in row for row in rows.values())},
        "networks": {kind: network.describe() for kind, network in networks.items()},
    }
