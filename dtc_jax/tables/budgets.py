"""What each table trains, for how long, and how it is sampled: the same for every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dtc_jax.inference.settings import SamplingChoices


@dataclass(frozen=True)
class Row:
    """A system that is compared."""

    label: str
    paper: str
    """Where the paper has it."""


DIFFUSE_TO_CHOOSE = "tiny"
BEST_PAINT_BY_EXAMPLE = "tiny_no_hint"

ROWS: Mapping[str, Row] = {
    DIFFUSE_TO_CHOOSE: Row("Diffuse to Choose: FiLM, pixel hint, all tokens, perceptual", "tables 1 and 2"),
    "tiny_pooled": Row("FiLM pooled to one gamma and beta per channel", "the FiLM paper's"),
    "tiny_fixed_time": Row("hint encoder without the timestep", "hint.time: fixed"),
    "tiny_contain": Row("hint with its aspect kept, in the largest rectangle", "3.2, the paper's"),
    "tiny_token_dropout": Row(
        "a fifth of the samples without tokens in training, not a twentieth", "as Paint by Example"
    ),
    "tiny_addition": Row("addition", "table 1"),
    "tiny_cross_attention": Row("cross-attention", "table 1"),
    "tiny_canny": Row("hint: Canny edges", "4.3"),
    "tiny_latent": Row("hint: stitched before the autoencoder", "4.3"),
    "tiny_no_perceptual": Row("without the perceptual loss", "table 2"),
    BEST_PAINT_BY_EXAMPLE: Row("no hint, all tokens, perceptual: the best Paint by Example", "table 2"),
    "tiny_no_hint_no_perceptual": Row("no hint, all tokens", "table 2"),
    "tiny_cls_only": Row("no hint, class token alone, perceptual", "table 2"),
}
"""By experiment, in the table's order."""

SAMPLINGS: Mapping[str, SamplingChoices] = {
    "one step, guidance 1.25": SamplingChoices(num_inference_steps=1, guidance_scale=1.25, unconditional="both"),
    "20 steps, guidance 2": SamplingChoices(num_inference_steps=20, guidance_scale=2.0, unconditional="both"),
}
"""The shipped model's own, which shows the mean of what a model thinks possible, and one that draws from it."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A table: what is trained, equally for every row, and measured on.

    Attributes:
        experiments: Names of `configs/`, each a key of `ROWS`.
        seeds: Of training: initial values, samples, noise. Seed k of one row sees the samples of seed k of any other.
        flags: Of train.py, for every row.
        stage_flags: Of train.py, for autoencoder and VGG, which all rows share; None: the shipped model's.
        judge_flags: Of train.py, for the VGG that figures are measured with.
        num_products: Never seen in training.
        samplings: Of `SAMPLINGS`.
    """

    experiments: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: tuple[str, ...]
    stage_flags: tuple[str, ...] | None = None
    judge_flags: tuple[str, ...] = ()
    num_products: int = 128
    samplings: tuple[str, ...] = tuple(SAMPLINGS)


def _flags(**values: object) -> tuple[str, ...]:
    """Flags of train.py from `section__field=value`."""
    words: list[str] = []
    for name, value in values.items():
        words += [f"--{name.replace('__', '.').replace('_', '-')}", str(value)]
    return tuple(words)


# What is not needed of a short run: sample grids, TensorBoard, more than the last checkpoint.
_SHORT = (*_flags(training__sample_every=0, training__keep_checkpoints=1), "--training.no-tensorboard")
_BRIEF = _flags(training__steps=4, training__batch_size=4, optimizer__warmup_steps=1)
_DECIDING = (DIFFUSE_TO_CHOOSE, "tiny_addition", BEST_PAINT_BY_EXAMPLE, "tiny_cls_only")

BUDGETS: Mapping[str, Budget] = {
    # 20 thousand samples a run.
    "cpu": Budget(
        experiments=_DECIDING,
        flags=_flags(training__steps=1250, training__batch_size=16, ema__decay=0.995) + _SHORT,
        judge_flags=_SHORT,
    ),
    # A hundred times as many, at twice the size.
    "full": Budget(
        experiments=tuple(ROWS),
        flags=_flags(
            training__steps=8000,
            training__batch_size=256,
            training__compute_dtype="bfloat16",
            model__image_size=128,
        )
        + _SHORT,
        stage_flags=_flags(training__batch_size=64, model__image_size=128) + _SHORT,
        judge_flags=_flags(model__image_size=128) + _SHORT,
        num_products=512,
    ),
    # Everything that the others do, too briefly to mean anything.
    "quick": Budget(
        experiments=_DECIDING,
        seeds=(0, 1),
        flags=_BRIEF + _SHORT,
        judge_flags=_BRIEF + _SHORT,
        num_products=4,
        samplings=("one step, guidance 1.25",),
    ),
}
