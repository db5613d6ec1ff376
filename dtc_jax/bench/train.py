"""`python -m dtc_jax.bench train [NAME]`: images per second and utilisation of the real train step.

With and without the perceptual loss, on made-up pictures that are on the device already; and, where PyTorch has a CUDA
device (or is asked for), the same networks and loss in PyTorch, measured before, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from dtc_jax.bench.command import answer, check_positive, run, without_pytorch
from dtc_jax.config import AutoencoderKLConfig, ConfigError, ExperimentConfig, config_to_json
from dtc_jax.training.abstract import abstract_batch
from dtc_jax.training.command import use_cpu_cores
from dtc_jax.training.flops import train_flops_per_image
from dtc_jax.training.hardware import accelerator
from dtc_jax.training.initial import initial_params
from dtc_jax.training.params import split_trainable
from dtc_jax.training.placement import place, put
from dtc_jax.training.provenance import git_revision, processor_name
from dtc_jax.training.sharding import batch_sharding, check_batch, make_mesh
from dtc_jax.weights.model_folder import flatten_params


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Measure the train step of an experiment (by default sd15, at 512 pixels)."""

    batch_size: int = 4
    """Samples in a step, over all devices."""
    steps: int = 20
    """Steps that are timed, after two that compile and warm up."""
    devices: int = 1
    """How many of this machine's devices."""
    pytorch: Literal["auto", "yes", "no"] = "auto"
    """The same in PyTorch: `auto` where it has a CUDA device, `yes` also on the CPU."""
    compile: bool = True
    """PyTorch's step through torch.compile."""
    json: bool = False
    """Print JSON in place of a table."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    """The experiment, field by field."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print what was measured; returns the exit code (2 for errors of use, each one line)."""
    try:
        return run("train", argv, TrainArguments, measure, table)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("dtc_jax.bench train: out of device memory; take a smaller --batch-size", file=sys.stderr)
        return 1


def measure(arguments: TrainArguments, command: str) -> dict[str, Any]:
    """Everything that was asked for, as plain data.

    Raises:
        ConfigError: what cannot work.
    """
    check_positive(arguments, "batch_size", "steps", "devices")
    config = arguments.config
    if config.stage != "diffusion":
        raise ConfigError(f"{config.name}: its stage {config.stage} has no perceptual loss to measure with and without")
    config = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, batch_size=arguments.batch_size, sample_every=0),
        data=dataclasses.replace(config.data, cached=()),
    )
    weights = {"with": config.loss.perceptual_weight or 0.1, "without": 0.0}
    # First, and in another process: JAX takes most of a GPU's memory as soon as it looks at it.
    pytorch = in_pytorch(arguments, config, weights)
    use_cpu_cores(arguments.devices, arguments.batch_size)
    found = jax.local_devices()
    if len(found) < arguments.devices:
        raise ConfigError(f"--devices {arguments.devices}: there are {len(found)}")
    devices = found[: arguments.devices]
    ours = {name: in_jax(with_weight(config, weight), arguments.steps, devices) for name, weight in weights.items()}
    known = accelerator(devices[0].device_kind)
    peak = known.peak_flops * len(devices) if known else None
    flops = {name: train_flops_per_image(with_weight(config, weight)) for name, weight in weights.items()}
    rows = {"jax": ours, **({"pytorch": pytorch["results"]} if "results" in pytorch else {})}
    for results in rows.values():
        for name, result in results.items():
            result["images_per_second"] = arguments.batch_size / result["seconds"]
            result["mfu"] = flops[name] * result["images_per_second"] / peak if peak else None
    device = devices[0]
    return {
        "experiment": config.name,
        "device": processor_name() if device.platform == "cpu" else device.device_kind,
        "devices": len(devices),
        "batch_size": arguments.batch_size,
        "image_size": config.model.image_size,
        "compute_dtype": config.training.compute_dtype,
        "steps": arguments.steps,
        "flops_per_image": flops,
        "rows": rows,
        "pytorch_skipped": pytorch.get("skipped"),
        "versions": {"jax": jax.__version__, **pytorch.get("versions", {})},
        "command": command,
        "revision": git_revision(),
    }


def with_weight(config: ExperimentConfig, weight: float) -> ExperimentConfig:
    """The experiment with another weight of the perceptual loss."""
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, perceptual_weight=weight))


def made_up_batch(config: ExperimentConfig) -> dict[str, np.ndarray]:
    """Noise for pictures, and a square mask in the middle."""
    random = np.random.default_rng(0)
    shapes = abstract_batch(config, config.training.batch_size)
    batch = {name: random.integers(0, 256, leaf.shape, np.uint8) for name, leaf in shapes.items() if name != "index"}
    side = config.model.image_size
    batch["mask"] = np.zeros(shapes["mask"].shape, np.uint8)
    batch["mask"][:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return {**batch, "index": np.arange(config.training.batch_size, dtype=np.uint32)}


def in_jax(config: ExperimentConfig, steps: int, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Time some steps of what train.py runs, after two that compile and warm up."""
    mesh = make_mesh(config.training.fsdp_devices, devices, config.training.slices)
    check_batch(config.training, mesh)
    key = jax.random.key(config.training.seed)
    trainable, frozen = split_trainable(flatten_params(initial_params(config, key)), config.training.trainable)
    counts = {"trained": count(trainable), "frozen": count(frozen)}
    step, state, frozen = place(config, mesh, trainable, frozen)
    batch = put(made_up_batch(config), batch_sharding(mesh))
    metrics: dict[str, Any] = {}
    for _ in range(2):
        state, metrics = step(state, frozen, batch, key)
    jax.block_until_ready((state, metrics))
    started = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, key)
    jax.block_until_ready((state, metrics))
    seconds = (time.perf_counter() - started) / steps
    # Of the process so far: the measurement that needs most comes first.
    memory = (devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"seconds": seconds, "loss": float(metrics["loss"]), **counts, "memory": memory}


def count(flat: dict[str, Any]) -> int:
    """Numbers in a flat dict of arrays."""
    return sum(leaf.size for leaf in flat.values())


# -------------------------------------------------------------------------------------------------------------- PyTorch


def in_pytorch(arguments: TrainArguments, config: ExperimentConfig, weights: dict[str, float]) -> dict[str, Any]:
    """What `dtc_jax.bench.pytorch_train` answers, or {"skipped": why}.

    Raises:
        ConfigError: it was asked for and cannot be had.
    """
    several = "PyTorch is measured on one device" if arguments.devices > 1 else None
    unwanted = "--pytorch no" if arguments.pytorch == "no" else None
    reason = without_pytorch() or several or unlike(config) or unwanted
    if reason is None:
        request = {
            "config": config_to_json(config),
            "batch_size": arguments.batch_size,
            "steps": arguments.steps,
            "weights": weights,
            "compile": arguments.compile,
            "cuda_only": arguments.pytorch == "auto",
        }
        found = answer("dtc_jax.bench.pytorch_train", request)
        if "failed" not in found:
            return found
        reason = f"PyTorch failed: {found['failed']}"
    if arguments.pytorch == "yes":
        raise ConfigError(f"--pytorch yes: {reason}")
    return {"skipped": reason}


def unlike(config: ExperimentConfig) -> str | None:
    """Why the PyTorch side would not be the same experiment; None if it is."""
    loss, training = config.loss, config.training
    cases = {
        "model.vae: only diffusers' AutoencoderKL": not isinstance(config.model.vae, AutoencoderKLConfig),
        "model.unet.mask_channel: only fill": config.model.unet.mask_channel != "fill",
        "loss.perceptual_decoder: only vae": loss.perceptual_decoder != "vae",
        "loss.perceptual_window: only 0": loss.perceptual_window not in (0, config.model.image_size),
        "loss.perceptual_max_timestep: only none": loss.perceptual_max_timestep is not None,
        "loss.min_snr_gamma: only none": loss.min_snr_gamma is not None,
        "training.remat: only none": training.remat != "none",
        "training.accumulation_steps: only 1": training.accumulation_steps != 1,
        "optimizer.moments_dtype: only float32": config.optimizer.moments_dtype != "float32",
    }
    return next(
        (
            f"the PyTorch side knows {case.split(': ')[1]} for {case.split(': ')[0]}"
            for case, differs in cases.items()
            if differs
        ),
        None,
    )


def table(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    lines = [
        f"{report['experiment']} on {report['devices']} x {report['device']}: batch {report['batch_size']}, "
        f"{report['image_size']} pixels, {report['compute_dtype']}, {report['steps']} steps",
        "",
        f"{'':30} {'images/s':>9} {'s/step':>8} {'MFU':>6} {'memory':>9}",
    ]
    names = {"with": "", "without": ", no perceptual loss"}
    for row, results in report["rows"].items():
        for name, text in names.items():
            result = results[name]
            mfu = f"{result['mfu']:.1%}" if result["mfu"] is not None else "-"
            memory = f"{result['memory'] / 2**30:.1f} GiB" if result["memory"] else "-"
            lines.append(
                f"{row + text:30} {result['images_per_second']:9.3g} {result['seconds']:8.3g} {mfu:>6} {memory:>9}"
            )
    if "pytorch" in report["rows"]:
        for name, text in names.items():
            ratio = report["rows"]["pytorch"][name]["seconds"] / report["rows"]["jax"][name]["seconds"]
            lines.append(f"{'jax / pytorch' + text:35} {ratio:.2f} x the images per second")
    else:
        lines.append(f"pytorch: not measured, {report['pytorch_skipped']}")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", f"{versions}, revision {report['revision']}", report["command"]])
