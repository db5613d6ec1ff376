"""Make the model folder that the package ships: half-precision weights, figures and a model card.

    python -m dtc_jax.evaluate --checkpoint runs/tiny --output metrics.json
    python scripts/ship_model.py --run runs/tiny --metrics metrics.json
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from dtc_jax.evaluation.report import markdown_table
from dtc_jax.weights.model_folder import flatten_params, load_model_folder, save_model_folder

SHIPPED = Path(__file__).resolve().parents[1] / "dtc_jax" / "shipped" / "tiny"
MAX_BYTES = 20 * 2**20

CARD = """# The tiny model

Diffuse to Choose at {size} pixels, trained from nothing by this repository's `train.py`; float16, {parameters:,} parameters
({megabytes:.1f} MB).

| | |
|---|---|
| data | generated: `dtc_jax.data.procedural`, training products only (ids below 2^31), seed {seed} |
| stages | {stages} |
| device | {device} |
| software | Python {python}, jax {jax} |
| git revision | {revision} |
| sampling | DDIM, {steps} steps, guidance {guidance}, unconditional branch without {unconditional} |

The whole configuration is in config.json; `python train.py tiny --run-dir DIR` trains it again and
`python train.py tiny --run-dir DIR --init-from dtc_jax/shipped/tiny` continues from it.

## Figures

On {count} held-out products of the generated world, at {size} pixels, with 95 % bootstrap intervals (metrics.json has the protocol):

{table}

Easy retrieval: the result is nearer (masked MSE) to its own truth than to 31 other products in the same scene and pose.
Hard retrieval: the 31 others share silhouette and palette, only pattern and logo differ. `naive_paste` pastes the trimmed
reference, white keyed out.

## What it cannot do

- It knows a world of flat, generated products and {size} pixels: on real photos it carries over colours and coarse
  patterns, not texture, shape in depth, or text.
- Turns of more than about 12 degrees between reference and scene were never seen.
- It paints at {size} pixels; in a larger photo the painted region is enlarged and looks soft.
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write dtc_jax/shipped/tiny from a finished run."""

    run: Path
    """Run folder of the diffusion stage, with its prerequisites in it."""
    metrics: Path
    """What `python -m dtc_jax.evaluate --output` wrote for this run."""
    extra: tuple[Path, ...] = ()
    """Further run folders whose training time belongs to the model (earlier stages that were trained elsewhere)."""


def stage_line(run: Path) -> str:
    """Name, steps, batch size and time of one run."""
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # A resumed run repeats some steps: the last record of each step counts.
    seconds = sum({line["step"]: line["seconds"] for line in lines}.values())
    time = timedelta(seconds=round(seconds))
    return f"{config['name']}: {lines[-1]['step']:,} steps of {config['training']['batch_size']}, {time}"


def main() -> None:
    arguments = tyro.cli(Arguments)
    config, params = load_model_folder(arguments.run / "model", dtype=np.float32)
    metrics: dict[str, Any] = json.loads(arguments.metrics.read_text())
    prerequisites = sorted((arguments.run / "prerequisites").glob("*/"))
    runs = [*prerequisites, *arguments.extra, arguments.run]
    origin = [json.loads(line) for line in (arguments.run / "provenance.jsonl").read_text().splitlines()][-1]
    save_model_folder(SHIPPED, config, params, dtype="float16")
    size = sum(path.stat().st_size for path in SHIPPED.iterdir())
    if size > MAX_BYTES:
        shutil.rmtree(SHIPPED)
        sys.exit(f"{size / 1e6:.1f} MB is more than a shipped model may weigh")
    (SHIPPED / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    card = CARD.format(
        size=config.model.image_size,
        parameters=sum(leaf.size for leaf in flatten_params(params).values()),
        megabytes=size / 1e6,
        seed=config.data.seed,
        stages="; ".join(stage_line(run) for run in runs),
        device=f"{origin['device']}, {origin['device_count']} {origin['platform']} device(s)",
        python=origin["python"],
        jax=origin["jax"],
        revision=origin["git_revision"],
        steps=config.sampling.num_inference_steps,
        guidance=config.sampling.guidance_scale,
        unconditional="tokens and hint" if config.sampling.unconditional == "both" else "tokens",
        count=metrics["protocol"]["num_products"],
        table=markdown_table(metrics["rows"]),
    )
    (SHIPPED / "README.md").write_text(card)
    print(f"{SHIPPED}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
