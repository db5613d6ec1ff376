"""`python -m dtc_jax.bench sample [NAME]`: seconds per image, memory and compile time of the sampler, beside PyTorch's.

Both sides have the same weights and inputs, made up from a seed, the same number of CPU cores, and a process of their
own; that they return the same image is checked. The PyTorch side runs the hint encoder in the loop, and in a second row
before it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from dtc_jax.bench.command import answer, check_positive, run, without_pytorch
from dtc_jax.bench.data import keep_to_cores
from dtc_jax.config import AutoencoderKLConfig, ConfigError, ExperimentConfig, config_to_json
from dtc_jax.training.hardware import accelerator
from dtc_jax.training.provenance import git_revision, processor_name

STAGES = ("scene", "reference", "condition", "hint", "denoise", "decode")


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Measure the sampler of an experiment (by default sd15, at 512 pixels)."""

    steps: int = 20
    """Solver steps (DDIM, guided)."""
    batch_size: int = 1
    """Cases in a call."""
    images_per_case: int = 1
    """Images of each case."""
    repeats: int = 2
    """Calls that are timed, after one that compiles; the fastest counts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and arithmetic, on both sides."""
    cores: int = 0
    """CPU cores that both sides keep to; 0 takes all."""
    stages: bool = True
    """Also time each stage alone."""
    pytorch: Literal["auto", "yes", "no"] = "auto"
    """The same in PyTorch: `auto` where it has a CUDA device, `yes` also on the CPU."""
    compile: bool = True
    """PyTorch's U-Net and hint encoder through torch.compile, on a GPU."""
    json: bool = False
    """Print JSON in place of a table."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    """The experiment, field by field."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print what was measured; returns the exit code (2 for errors of use, each one line)."""
    return run("sample", argv, SampleArguments, measure, table)


def measure(arguments: SampleArguments, command: str) -> dict[str, Any]:
    """Everything that was asked for, as plain data.

    Raises:
        ConfigError: what cannot work.
    """
    check_positive(arguments, "batch_size", "steps", "images_per_case", "repeats")
    config = arguments.config
    # What is measured is a guided sampler.
    guidance = config.sampling.guidance_scale if config.sampling.guidance_scale != 1 else 2.0
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, guidance_scale=guidance))
    keep_to_cores(arguments.cores)
    request = {
        "config": config_to_json(config),
        "cuda_only": arguments.pytorch == "auto",
        **{
            name: getattr(arguments, name)
            for name in ("steps", "batch_size", "images_per_case", "repeats", "dtype", "stages", "compile")
        },
    }
    reason = without_pytorch() or unlike(config) or ("--pytorch no" if arguments.pytorch == "no" else None)
    pytorch: dict[str, Any] = {"skipped": reason}
    if reason is None:
        # One side after the other: together they would not fit into most machines.
        pytorch = answer("dtc_jax.bench.pytorch_sample", request)
    if "failed" in pytorch:
        pytorch = {"skipped": f"PyTorch failed: {pytorch['failed']}"}
    if "skipped" in pytorch and arguments.pytorch == "yes":
        raise ConfigError(f"--pytorch yes: {pytorch['skipped']}")
    ours = answer("dtc_jax.bench.jax_sample", request)
    if "failed" in ours:
        raise ConfigError(ours["failed"])
    images = arguments.batch_size * arguments.images_per_case
    known = accelerator(ours["device"])
    rows = {**ours["rows"], **pytorch.get("rows", {})}
    for row in rows.values():
        row["seconds_per_image"] = row["seconds"] / images
    rows["jax"]["mfu"] = ours["flops"] / rows["jax"]["seconds"] / known.peak_flops if known else None
    difference = None
    if "checksum" in pytorch:
        difference = float(np.abs(np.subtract(pytorch["checksum"], ours["checksum"])).max())
    return {
        "experiment": config.name,
        "device": processor_name() if ours["device"] == "cpu" else ours["device"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "images_per_case": arguments.images_per_case,
        "image_size": config.model.image_size,
        "dtype": arguments.dtype,
        "hint_time": config.model.hint.time,
        "unconditional": config.sampling.unconditional,
        "flops_per_image": ours["flops"] / images,
        "compile_seconds": ours["compile_seconds"],
        "pytorch_first_seconds": pytorch.get("first_seconds"),
        "rows": rows,
        "largest_difference": difference,
        "pytorch_skipped": pytorch.get("skipped"),
        "versions": {**ours["versions"], **pytorch.get("versions", {})},
        "command": command,
        "revision": git_revision(),
    }


def unlike(config: ExperimentConfig) -> str | None:
    """Why the PyTorch side cannot be measured; None if it can."""
    if not isinstance(config.model.vae, AutoencoderKLConfig):
        return "the PyTorch side knows only diffusers' AutoencoderKL for model.vae"
    if config.model.unet.mask_channel != "fill":
        return "the PyTorch side knows only fill for model.unet.mask_channel"
    return None


def table(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [
        f"{report['experiment']} on {report['device']}, {report['cores']} cores: {report['image_size']} pixels, "
        f"{report['batch_size']} x {report['images_per_case']} images, {report['steps']} guided steps, "
        f"{report['dtype']}, hint.time {report['hint_time']}",
        f"{report['flops_per_image'] / 1e12:.3g} TFLOP an image; compiled in {report['compile_seconds']:.1f} s",
        "",
        f"{'':30} {'s/image':>9} {'CPU s':>8} {'memory':>10} {'jax takes':>10}",
    ]
    rows = report["rows"]
    for name, row in rows.items():
        ratio = "" if name == "jax" else f"{rows['jax']['seconds'] / row['seconds']:.2f} x"
        memory = f"{row['memory'] / 2**30:.2f} GiB"
        lines.append(
            f"{name:30} {row['seconds_per_image']:9.4g} {row['cpu_seconds']:8.4g} {memory:>10} {ratio:>10}".rstrip()
        )
    if report["pytorch_skipped"]:
        lines.append(f"pytorch: not measured, {report['pytorch_skipped']}")
    measured = {name: row["stages"] for name, row in rows.items() if row["stages"]}
    if measured:
        lines += ["", f"{'seconds of':30} " + " ".join(f"{stage:>10}" for stage in STAGES)]
        for name, stages in measured.items():
            cells = (f"{stages[stage]:10.4g}" if stage in stages else f"{'-':>10}" for stage in STAGES)
            lines.append(f"{name:30} " + " ".join(cells))
    if report["largest_difference"] is not None:
        lines += ["", f"largest difference of two pixels: {report['largest_difference']:.1e}"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", f"{versions}, revision {report['revision']}", report["command"]])
