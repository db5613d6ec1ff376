"""Measure the trained runs of a table on the same unseen products and the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dtc_jax.config import VGGConfig
from dtc_jax.evaluation.cases import Cases
from dtc_jax.evaluation.distributions import frechet_distance
from dtc_jax.evaluation.fidelity import BASELINES, evaluate_fidelity, hide_truth, score_results
from dtc_jax.evaluation.generators import describe_settings, pipeline_generator
from dtc_jax.evaluation.label_features import LabelScores, score_with_labels
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.tables.budgets import SAMPLINGS
from dtc_jax.weights.fingerprint import fingerprint
from dtc_jax.weights.run_folder import load_checkpoint

TRUTH = "truth"
"""The row of the truth itself: what the figures without a known best can reach."""
FIDELITY = ("easy_retrieval", "hard_retrieval", "ssim", "psnr")


@dataclass
class Measured:
    """What a table is made of.

    Attributes:
        figures: {sampling: {run or baseline: {figure: mean over the products}}}; a baseline, and the truth, are the
            same for every sampling.
        found: {sampling: {run: for each product, whether it was told from its hard distractors}}.
        pictures: Of the products, in their order: scene, mask, reference, truth and {sampling: {run: result}}.
        protocol: Of `evaluate_fidelity`, with the settings of each sampling.
        device: Measured on.
        seconds: Of measuring.
    """

    figures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    found: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    seconds: float = 0.0


def load_judge(folder: Path) -> tuple[VGGConfig, Any]:
    """The VGG of `train.py tiny_vgg` and its sizes.

    Raises:
        ModelFolderError: no such run.
    """
    config, params = load_checkpoint(folder, dtype=np.float32, networks=("vgg",))
    return config.model.vgg, params["vgg"]


def measure_runs(
    folders: Mapping[str, Path],
    judge: Path,
    *,
    samplings: tuple[str, ...],
    num_products: int,
    batch_size: int = 32,
    seed: int = 0,
    shown: tuple[str, ...] = (),
    num_shown: int = 64,
) -> Measured:
    """Sample every run in every way, and measure the results.

    Args:
        folders: By the run's name: run or model folders of equal sizes.
        judge: Run folder of the VGG that distances are measured with.
        samplings: Of `SAMPLINGS`.
        num_products: Unseen ones, a case each.
        batch_size: Cases at a time; figures do not depend on it.
        seed: Of the cases and their noise.
        shown: Runs of which pictures are kept.
        num_shown: Of so many products.

    Raises:
        ModelFolderError: a run that cannot be loaded.
        ValueError: runs of different sizes, or none.
    """
    pipelines = {name: Pipeline.load(folder) for name, folder in folders.items()}
    sizes = {(p.config.model.image_size, p.config.model.reference_size) for p in pipelines.values()}
    if len(sizes) != 1:
        raise ValueError(f"runs of one image size and one reference size can be compared, not {sorted(sizes)}")
    image_size, reference_size = sizes.pop()
    generators = {
        _key(name, sampling): pipeline_generator(pipeline, SAMPLINGS[sampling])
        for sampling in samplings
        for name, pipeline in pipelines.items()
    }
    first, *others = generators
    config, vgg = load_judge(judge)
    measured = Measured()
    labels: dict[str, list[LabelScores]] = {key: [] for key in (*generators, *BASELINES, TRUTH)}
    found: dict[str, list[bool]] = {key: [] for key in generators}

    def keep(cases: Cases, results: Mapping[str, np.ndarray]) -> None:
        shown_results = {first if key == "model" else key: result for key, result in results.items()}
        # The last batch is filled up with products that do not count.
        kept = min(len(cases.truth), num_products - sum(len(part.distance) for part in labels[TRUTH]))
        for key, result in {**shown_results, TRUTH: cases.truth}.items():
            scores = score_with_labels(config, vgg, result, cases.truth, cases.mask, cases.reference)
            labels[key].append(LabelScores(*(values[:kept] for values in scores)))
            if key in found:
                told = score_results(result, cases.truth, cases.mask, cases.easy, cases.hard).hard_retrieval
                found[key] += [bool(one) for one in np.asarray(told)[:kept]]
        for row in range(min(kept, num_shown - len(measured.pictures))):
            of_runs = {s: {name: shown_results[_key(name, s)][row] for name in shown} for s in samplings}
            scene = hide_truth(cases.truth[row], cases.mask[row])
            whole = {"scene": scene, "mask": cases.mask[row], "reference": cases.reference[row]}
            measured.pictures.append(
                {**whole, "naive_paste": cases.naive_paste[row], "truth": cases.truth[row], "results": of_runs}
            )

    report = evaluate_fidelity(
        generators[first],
        num_products=num_products,
        image_size=image_size,
        reference_size=reference_size,
        batch_size=min(batch_size, num_products),
        seed=seed,
        others={key: generators[key] for key in others},
        on_batch=keep,
    )
    rows = {first if key == "model" else key: summary["all"] for key, summary in report["rows"].items()}
    joined = {
        key: LabelScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for key, parts in labels.items()
    }
    for sampling in samplings:
        table = measured.figures.setdefault(sampling, {})
        for name in (*folders, *BASELINES, TRUTH):
            key = _key(name, sampling) if name in folders else name
            own = joined[key]
            table[name] = {figure: float(rows[key][figure]["mean"]) for figure in FIDELITY} if key in rows else {}
            table[name]["feature_distance"] = float(own.distance.mean())
            table[name]["similarity"] = float(own.similarity.mean())
            if num_products > 1 and name != TRUTH:
                table[name]["frechet"] = frechet_distance(own.features, joined[TRUTH].features)
        measured.found[sampling] = {name: found[_key(name, sampling)] for name in folders}
    some = next(iter(pipelines.values()))
    settings = {sampling: describe_settings(some, SAMPLINGS[sampling]) for sampling in samplings}
    for one in settings.values():
        del one["experiment"]
    measured.protocol = {
        **report["protocol"],
        "samplings": settings,
        **LABEL_PROTOCOL,
        "judge_weights": fingerprint({"vgg": vgg}),
    }
    measured.device, measured.seconds = report["device"], report["seconds"]["total"]
    return measured


def _key(name: str, sampling: str) -> str:
    return f"{name}: {sampling}"


LABEL_PROTOCOL = {
    "judge": "a narrow VGG trained on the generated world's labels with a seed of its own",
    "feature_distance": "LPIPS's formula with unit channel weights on the judge's blocks, averaged over the mask",
    "similarity": "100 x cosine of the judge's averaged last features: the mask's box in the result, and the reference",
    "frechet": "Frechet distance of the judge's averaged last features of whole results and of whole truths",
}
