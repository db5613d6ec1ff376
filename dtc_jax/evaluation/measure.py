"""Measure a set of results: images are read, prepared and compared in a stream; figures have intervals.

Of an image nothing is kept but its figures and its features, one vector a network.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from dtc_jax.data.images import InputError, read_photo
from dtc_jax.data.masks import bounding_box
from dtc_jax.evaluation.batching import BatchedFunction
from dtc_jax.evaluation.color_histograms import color_histogram, nearest_is_own, reference_histogram
from dtc_jax.evaluation.distributions import frechet_spread, kernel_spread
from dtc_jax.evaluation.feature_networks import FeatureNetwork, Features, cosine, inception_input, resized
from dtc_jax.evaluation.fidelity import describe_device
from dtc_jax.evaluation.image_metrics import METRICS, OF_SETS, why_left_out
from dtc_jax.evaluation.image_sets import Images, ImageSet, at_size
from dtc_jax.evaluation.metrics import (
    SSIM_RADIUS,
    bootstrap_interval,
    image_psnr,
    image_ssim,
    masked_psnr,
    masked_ssim,
    share_changed,
)

_READERS = 4
_AHEAD = 16
"""Images that are read before their turn."""


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        paired: Result and truth of one name show the same.
        paste_back: Outside the mask, take the scene's pixels before anything else is measured.
        resize: Bring all images to squares of this size first; None: leave them.
        tolerance: Of `changed_outside`, in levels of 255.
        batch_size: Images at once.
        set_resamples: Draws for the intervals of FID and its like; fewer than 2: none.
        seed: Of every bootstrap.
    """

    paired: bool = True
    paste_back: bool = False
    resize: int | None = None
    tolerance: int = 0
    batch_size: int = 32
    set_resamples: int = 20
    seed: int = 0


def compare_pixels(
    params: Mapping[str, Any],
    result: UInt8[Array, "b h w 3"],
    truth: UInt8[Array, "b h w 3"],
    mask: UInt8[Array, "b h w 1"] | None = None,
) -> dict[str, Float[Array, "b"]]:
    """SSIM and PSNR of 8-bit images, whole and (with a mask) inside it. `params` is not looked at."""
    shown, own = result.astype(jnp.float32) / 255, truth.astype(jnp.float32) / 255
    figures = {"ssim": image_ssim(shown, own), "psnr": image_psnr(shown, own)}
    if mask is not None:
        inside = mask.astype(jnp.float32)
        figures["ssim_in_mask"] = masked_ssim(shown, own, inside)
        figures["psnr_in_mask"] = masked_psnr(shown, own, inside)
    return figures


def _compare_outside(tolerance: int, params: Mapping[str, Any], result: Array, scene: Array, mask: Array) -> Array:
    return share_changed(result, scene, mask, tolerance)


@dataclass(frozen=True)
class _Distance:
    module: Any

    def __call__(self, params: Mapping[str, Any], result: Array, truth: Array) -> Array:
        unit = [image.astype(jnp.float32) / 255 for image in (result, truth)]
        distance: Array = self.module.apply({"params": params}, *unit)
        return distance


class _Kept:
    """In place of a function of the devices: what the host has computed is handed on as it is."""

    def __init__(self) -> None:
        self._found: dict[Any, np.ndarray] = {}

    def add(self, key: Any, value: np.ndarray) -> None:
        self._found[key] = value

    def finish(self) -> dict[Any, np.ndarray]:
        return self._found


Prepared = list[tuple[str, tuple[str, str], tuple[np.ndarray, ...]]]
"""(name of the function, (result's name, which image), arrays)."""


def measure(
    images: ImageSet,
    networks: Mapping[str, FeatureNetwork],
    options: MeasureOptions,
    *,
    real: Mapping[str, Path] | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure one set of results.

    Args:
        images: The results and what they are compared with.
        networks: Feature networks by kind; figures without theirs are left out.
        options: How.
        real: Images of the set that an unpaired comparison of distributions takes; None: the truths.
        devices: Of this process; None: all of them.
        progress: Show a bar where the standard error output is a terminal.
        warn: Told what makes a figure doubtful, in a line.

    Returns:
        `figures` ({metric: {"mean" (of a set: "value"), "low", "high", "n"}}), `left_out` ({metric: why}), `warnings`,
        `values` ({metric: {name: value}}), `seconds`, `device`.

    Raises:
        InputError: an image that cannot be read, or sizes that differ.
    """
    started = time.perf_counter()
    devices = list(devices or jax.local_devices())
    has_truth = images.has_truth or real is not None
    there = {"truth"} if has_truth else set()
    there |= {what for what in ("scene", "mask", "reference") if getattr(images, f"has_{what}")}
    if options.paired and images.has_truth and real is None:
        there.add("pair")
    left_out = {name: why for name, metric in METRICS.items() if (why := why_left_out(metric, set(networks), there))}
    wanted = [name for name in METRICS if name not in left_out]
    warnings: list[str] = []

    batch_size = min(options.batch_size, max(len(images.names), 1))
    functions = _functions(wanted, networks, options, batch_size, devices)

    def prepared(name: str) -> Prepared:
        return prepare(name, at_size(images.read(name), options.resize, name), wanted, networks, options, real is None)

    def prepared_real(name: str) -> Prepared:
        assert real is not None
        shown = read_photo(real[name], "truth").pixels
        shown = shown if options.resize is None else resized(shown, options.resize)
        return [*_set_inputs(name, "truth", shown, wanted, networks)]

    steps: list[tuple[Callable[[str], Prepared], str]] = [(prepared, name) for name in images.names]
    if real is not None:
        steps += [(prepared_real, name) for name in real]
    bar = tqdm(_ahead(steps), total=len(steps), desc="measuring", unit="image", disable=None if progress else True)
    for parts in bar:
        for function, key, arrays in parts:
            functions[function].add(key, *arrays)
    found: dict[str, dict[Any, Any]] = {name: function.finish() for name, function in functions.items()}

    values = _values(images.names, found, wanted)
    figures: dict[str, Any] = {}
    for name in wanted:
        if name in OF_SETS:
            features = found[METRICS[name].network or ""]
            first, second = (
                np.stack([features[key] for key in features if key[1] == which]) for which in ("result", "truth")
            )
            if min(len(first), len(second)) < 2:
                left_out[name] = "needs at least two images on each side"
                continue
            few = min(len(first), len(second))
            if name != "kid" and few <= first.shape[1]:
                warnings.append(
                    f"{METRICS[name].label}: {few} images for {first.shape[1]} features: the covariance is singular "
                    "and the figure much too large; compare it only at equal numbers of images (KID has no such bias)"
                )
                warn(warnings[-1])
            distance = kernel_spread if name == "kid" else frechet_spread
            together = options.paired and real is None
            spread = distance(first, second, resamples=options.set_resamples, seed=options.seed, paired=together)
            figures[name] = {
                "value": spread.value,
                "low": spread.low,
                "high": spread.high,
                "n": [len(first), len(second)],
            }
            figures[name] = {key: None if value != value else value for key, value in figures[name].items()}
        else:
            own = np.array([values[name][one] for one in images.names])
            mean, low, high = bootstrap_interval(own, options.seed)
            figures[name] = {"mean": mean, "low": low, "high": high, "n": len(own)}
    return {
        "figures": figures,
        "left_out": left_out,
        "warnings": warnings,
        "values": values,
        "device": describe_device(),
        "seconds": time.perf_counter() - started,
    }


def _functions(
    wanted: Sequence[str],
    networks: Mapping[str, FeatureNetwork],
    options: MeasureOptions,
    batch_size: int,
    devices: Sequence[jax.Device],
) -> dict[str, BatchedFunction | _Kept]:
    """The functions that these figures need, by the name of their network or of what they compare."""
    kinds = {METRICS[name].network for name in wanted}
    made: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {}
    for kind, network in networks.items():
        if kind in kinds:
            function = _Distance(network.module) if kind == "lpips" else Features(kind, network.module)
            made[kind] = (function, network.params)
    if "ssim" in wanted:
        made["pixels"] = (compare_pixels, {})
    if "changed_outside" in wanted:
        made["outside"] = (partial(_compare_outside, options.tolerance), {})
    functions: dict[str, BatchedFunction | _Kept] = {
        name: BatchedFunction(*one, batch_size, devices) for name, one in made.items()
    }
    if "own_colors" in wanted:
        functions["colors"] = _Kept()
    return functions


def prepare(
    name: str,
    images: Images,
    wanted: Sequence[str],
    networks: Mapping[str, FeatureNetwork],
    options: MeasureOptions,
    truths_are_the_set: bool = True,
) -> Prepared:
    """What the functions are handed of one result, from its images.

    Raises:
        InputError: an image too small to be compared.
    """
    parts: Prepared = []
    mask = None if images.mask is None else images.mask[..., None]
    if "changed_outside" in wanted:
        assert images.scene is not None and mask is not None
        parts.append(("outside", (name, "result"), (images.result, images.scene, mask)))
    result = images.result
    if options.paste_back:
        if mask is None or images.scene is None:
            raise InputError(f"{name}: --paste-back needs a mask, and a scene or truth to take the pixels from")
        result = np.where(mask > 0, result, images.scene)
    if "ssim" in wanted:
        assert images.truth is not None
        if min(result.shape[:2]) <= 2 * SSIM_RADIUS:
            raise InputError(f"{name}: is {result.shape[1]}x{result.shape[0]} pixels; SSIM's window has 11 x 11")
        pair = (result, images.truth)
        parts.append(("pixels", (name, "result"), pair if mask is None else (*pair, mask)))
    if "lpips" in wanted:
        assert images.truth is not None
        smallest = networks["lpips"].smallest
        if min(result.shape[:2]) < smallest:
            raise InputError(
                f"{name}: is {result.shape[1]}x{result.shape[0]} pixels; {networks['lpips'].name} needs {smallest} on "
                "each side"
            )
        parts.append(("lpips", (name, "result"), (result, images.truth)))
    if "own_colors" in wanted:
        assert images.mask is not None and images.reference is not None
        parts.append(("colors", (name, "result"), (color_histogram(result[images.mask > 0]),)))
        parts.append(("colors", (name, "reference"), (reference_histogram(images.reference),)))
    parts += _set_inputs(name, "result", result, wanted, networks)
    if images.truth is not None and truths_are_the_set:
        parts += _set_inputs(name, "truth", images.truth, wanted, networks)
    for kind, metric in (("clip", "clip_score"), ("dinov2", "dinov2_similarity")):
        if metric in wanted:
            assert images.mask is not None and images.reference is not None
            y0, x0, y1, x1 = bounding_box(images.mask)
            size = networks[kind].image_size
            filters = Image.Resampling.BILINEAR if kind == "clip" else Image.Resampling.BICUBIC
            parts.append((kind, (name, "region"), (resized(result[y0:y1, x0:x1], size, filters),)))
            parts.append((kind, (name, "reference"), (resized(images.reference, size),)))
    return parts


def _set_inputs(
    name: str,
    which: str,
    image: UInt8[np.ndarray, "h w 3"],
    wanted: Sequence[str],
    networks: Mapping[str, FeatureNetwork],
) -> Iterator[tuple[str, tuple[str, str], tuple[np.ndarray, ...]]]:
    """A whole image for the networks whose distributions are compared."""
    if "fid" in wanted:
        yield "inception", (name, which), (inception_input(image),)
    if "clip_fid" in wanted:
        yield "clip", (name, which), (resized(image, networks["clip"].image_size),)


def _values(
    names: Sequence[str], found: Mapping[str, Mapping[Any, Any]], wanted: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The figures of single images."""
    values: dict[str, dict[str, float]] = {}
    for metric in wanted:
        if metric in OF_SETS:
            continue
        network = METRICS[metric].network
        if network in ("clip", "dinov2"):
            features = found[network]
            values[metric] = {
                name: 100 * cosine(features[name, "region"], features[name, "reference"]) for name in names
            }
        elif network == "lpips":
            values[metric] = {name: float(found["lpips"][name, "result"]) for name in names}
        elif metric == "own_colors":
            kinds = [np.stack([found["colors"][name, kind] for name in names]) for kind in ("result", "reference")]
            values[metric] = dict(zip(names, nearest_is_own(*kinds).tolist(), strict=True))
        elif metric == "changed_outside":
            values[metric] = {name: float(found["outside"][name, "result"]) for name in names}
        else:
            values[metric] = {name: float(found["pixels"][name, "result"][metric]) for name in names}
    for metric, of_image in values.items():
        wrong = [name for name, value in of_image.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(f"{wrong[0]}: {METRICS[metric].label} is not a finite number")
    return values


def _ahead(steps: Iterable[tuple[Callable[[str], Prepared], str]]) -> Iterator[Prepared]:
    """The steps' results in order, a few made ahead by threads."""
    with ThreadPoolExecutor(_READERS) as readers:
        waiting: deque[Future[Prepared]] = deque()
        try:
            for function, name in steps:
                waiting.append(readers.submit(function, name))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
