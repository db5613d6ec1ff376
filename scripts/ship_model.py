"""Make the model folder that the package ships: half-precision weights, figures and a model card.

python scripts/ship_model.py --run runs/tiny
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dtc_jax import evaluate
from dtc_jax.config import BoxOutline, ExperimentConfig
from dtc_jax.evaluation.report import markdown_table
from dtc_jax.weights.model_folder import Params, flatten_params, save_model_folder
from dtc_jax.weights.run_folder import load_checkpoint

SHIPPED = Path(__file__).resolve().parents[1] / "dtc_jax" / "shipped" / "tiny"
MAX_BYTES = 20 * 2**20

CARD = """# The tiny model

Diffuse to Choose at {size} pixels, trained from nothing by this repository's `train.py`; float16,
{parameters:,} parameters ({megabytes:.1f} MB).

| | |
|---|---|
| data | generated: `dtc_jax.data.procedural`, training products only (ids below 2^31), seed {seed} |
| stages | {stages} |
| device | {device} |
| software | Python {python}, jax {jax} |
| git revision | {revision} |
| sampling | DDIM, {steps} steps, guidance {guidance}, unconditional branch without {unconditional}; {outline} |

{recipe}The whole configuration is in config.json; `python train.py tiny --run-dir DIR` trains such a model from nothing
and `python train.py tiny --run-dir DIR --init-from dtc_jax/shipped/tiny` continues from it.

## Figures

On {count} held-out products of the generated world (evaluation seed {evaluation_seed}), at {size} pixels, with 95 %
bootstrap intervals (the protocol is in metrics.json):

{table}

Easy retrieval: the result is nearer (masked MSE) to its own truth than to 31 other products in the same scene and pose.
Hard retrieval: the 31 others share silhouette, palette and pattern, only the logo differs. `naive_paste` pastes the
trimmed reference, white keyed out, in the largest rectangle inside the mask, aspect kept; `stretched_paste` stretches
it over the mask's bounding box, which is where the model's hint has it.

## What it cannot do

- It knows a world of flat, generated products and {size} pixels: on real photos it carries over colours and coarse
  patterns, not texture, shape in depth, or text.
- Turns in the picture of more than about 12 degrees between reference and scene were never seen.
- Under a box mask it paints the mean of what is possible, whose outline is soft and has a halo.{box_outline}
- It paints at {size} pixels; in a larger photo the painted region is enlarged and looks soft.
"""

REFERENCE_OUTLINE = """ Its configuration
  therefore has such a mask cut to the reference's own outline, stretched into the box (`box_outline`; on white or
  transparent references): clean, but never turned, and the rest of the box is a smooth fill without a shadow.
  `--box-outline model` lets it paint all of the box (more in docs/results.md)."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write dtc_jax/shipped/tiny from a finished run."""

    run: Path
    """Run folder of the diffusion stage, with its prerequisites in it."""
    num_products: int = 512
    """Held-out products to measure on."""
    seed: int = 1
    """Seed of the products that are measured on: another one than that on which anything was chosen."""
    num_inference_steps: int | None = None
    """Solver steps that the folder's configuration names as default; the run's own if not given."""
    guidance_scale: float | None = None
    """Guidance scale that it names as default; the run's own if not given."""
    box_outline: BoxOutline | None = None
    """Who draws the outline in boxes by default; as the run's own if not given."""
    compare: dict[str, Path] = field(default_factory=dict)
    """Further checkpoints for the table, by name."""
    extra: tuple[Path, ...] = ()
    """Further run folders whose training time belongs to the model (earlier stages that were trained elsewhere)."""
    recipe: str = ""
    """What the card says of how the stages followed one another and how the sampling was chosen."""


def stage_line(run: Path) -> str:
    """Name, steps, batch size and time of one run."""
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A resumed run repeats some steps: the last record of each step counts.
    seconds = sum({line["step"]: line["seconds"] for line in lines}.values())
    time = timedelta(seconds=round(seconds))
    return f"{config['name']}: {lines[-1]['step']:,} steps of {config['training']['batch_size']}, {time}"


def main() -> None:
    """Write the folder beside, measure what was written, then put it in place."""
    arguments = tyro.cli(Arguments)
    config, params = load_checkpoint(arguments.run, dtype=np.float32)
    sampling = dataclasses.replace(
        config.sampling,
        num_inference_steps=arguments.num_inference_steps or config.sampling.num_inference_steps,
        guidance_scale=arguments.guidance_scale or config.sampling.guidance_scale,
        box_outline=arguments.box_outline or config.sampling.box_outline,
    )
    config = dataclasses.replace(config, sampling=sampling)
    scratch = SHIPPED.with_name("tiny.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    save_model_folder(scratch, config, params, dtype="float16")
    size = sum(path.stat().st_size for path in scratch.iterdir())
    if size > MAX_BYTES:
        sys.exit(f"{scratch}: {size / 1e6:.1f} MB is more than a shipped model may weigh")

    # The figures are those of the half-precision weights that ship.
    compare = [f"{name}={folder}" for name, folder in arguments.compare.items()]
    flags = ["--checkpoint", str(scratch), "--num-products", str(arguments.num_products)]
    flags += ["--seed", str(arguments.seed)]
    flags += ["--output", str(scratch / "metrics.json"), "--sheet", str(arguments.run / "held_out.png")]
    if evaluate.main([*flags, *(["--compare", *compare] if compare else [])]) != 0:
        sys.exit("the evaluation failed; nothing was put in place")
    # The folder's name after it has been put in place, whatever checkout this is.
    text = (scratch / "metrics.json").read_text().replace(str(scratch), "dtc_jax/shipped/tiny")
    (scratch / "metrics.json").write_text(text)
    metrics: dict[str, Any] = json.loads(text)
    (scratch / "README.md").write_text(model_card(arguments, config, params, metrics, size))
    shutil.rmtree(SHIPPED, ignore_errors=True)
    scratch.rename(SHIPPED)
    print(f"{SHIPPED}: {size / 1e6:.1f} MB")


def model_card(
    arguments: Arguments, config: ExperimentConfig, params: Params, metrics: dict[str, Any], size: int
) -> str:
    """The card, from what the run and the evaluation wrote."""
    prerequisites = sorted((arguments.run / "prerequisites").glob("*/"))
    origin = [json.loads(line) for line in (arguments.run / "provenance.jsonl").read_text().splitlines()][-1]
    recipe = textwrap.fill(arguments.recipe, 120) + "\n\n" if arguments.recipe else ""
    return CARD.format(
        recipe=recipe,
        size=config.model.image_size,
        parameters=sum(leaf.size for leaf in flatten_params(params).values()),
        megabytes=size / 1e6,
        seed=config.data.seed,
        stages="; ".join(stage_line(run) for run in [*prerequisites, *arguments.extra, arguments.run]),
        device=f"{origin['device']}, {origin['device_count']} {origin['platform']} device(s)",
        python=origin["python"],
        jax=origin["jax"],
        revision=origin["git_revision"],
        steps=config.sampling.num_inference_steps,
        guidance=config.sampling.guidance_scale,
        unconditional="tokens and hint" if config.sampling.unconditional == "both" else "tokens",
        outline=f"in boxes the {config.sampling.box_outline}'s outline",
        box_outline=REFERENCE_OUTLINE if config.sampling.box_outline == "reference" else "",
        count=metrics["protocol"]["num_products"],
        evaluation_seed=metrics["protocol"]["seed"],
        table=markdown_table(metrics["rows"]),
    )


if __name__ == "__main__":
    main()
