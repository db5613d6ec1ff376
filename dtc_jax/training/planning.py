"""What a train step will need on machines that are not here: compiled ahead of time, measured from the program."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.models.attention import BLOCKS, GRADIENT_BLOCK, LONG_SCORES
from dtc_jax.training.collectives import Exchange, collectives
from dtc_jax.training.flops import train_flops_per_image
from dtc_jax.training.hardware import Accelerator
from dtc_jax.training.lowering import lower_train_step
from dtc_jax.training.sharding import bytes_per_device, make_mesh

TPU_ENVIRONMENT = (
    "--topology needs libtpu, best in an environment of its own: python3 -m venv .venv-tpu && "
    ".venv-tpu/bin/pip install -e '.[tpu]', then .venv-tpu/bin/python -m dtc_jax.training.plan"
)

LIBTPU_SETTINGS = {
    # There is no TPU here and no metadata server that knows of one; without these it says so in many lines.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    # Several plans may be made at a time: the lock is for those who would run something.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment variables of libtpu; what the environment says stands."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parameters: Trainable parameters.
        ema: Their moving average.
        optimizer: The optimizer's state.
        frozen: Frozen networks.
        batch: The device's part of the batch.
        activations: The compiler's temporaries: activations, gradients, gathered parameters.
        attention: Estimate of the tables of scores of the longest attention, where CPUs stand in for accelerators.
        program: The program itself, where it lies in the same memory (TPUs).
        other: What the compiler adds to arguments and results, mostly padding of layouts.
        peak: Arguments, results, temporaries and program, less what results and arguments share.
    """

    parameters: int
    ema: int
    optimizer: int
    frozen: int
    batch: int
    activations: int
    attention: int
    program: int
    other: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """One compilation of the train step.

    Attributes:
        per_device_batch: Samples of each device in a step.
        memory: What a device needs; None if the compiler found that it cannot have it.
        needed: The peak, from the compiler's refusal if need be.
        exchanges: Collectives of a step, by kind.
        unknown_loops: Loops with collectives whose number of turns is unknown; they are counted once.
        seconds: How long it took to lower and compile.
    """

    per_device_batch: int
    memory: Memory | None
    needed: int
    exchanges: dict[str, Exchange]
    unknown_loops: int
    seconds: float


def topology_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Devices of a TPU topology such as `v5e:4x4` that programs can be compiled for, and nothing else.

    Raises:
        ConfigError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(TPU_ENVIRONMENT)
    for name, value in LIBTPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        # Both cores of a chip as one device, as v4 is used; the names of other kinds say it by themselves.
        options["chip_config_name"] = "megacore"
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except Exception as error:  # what libtpu raises has no class of its own
        message = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology {topology}: {message}; it is KIND:AxB, or AxBxC for v4 and v5p: v5e:4x4, v5p:2x2x2"
        ) from None


def training_mesh(config: ExperimentConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh that training makes of these devices.

    Raises:
        ConfigError: the devices cannot be divided as the experiment says.
    """
    return make_mesh(config.training.fsdp_devices, devices, config.training.slices)


def with_per_device_batch(config: ExperimentConfig, per_device_batch: int, devices: int) -> ExperimentConfig:
    """The experiment with `per_device_batch` samples on each of `devices`."""
    training = dataclasses.replace(config.training, batch_size=per_device_batch * devices)
    return dataclasses.replace(config, training=training)


def compile_step(
    config: ExperimentConfig,
    devices: Sequence[jax.Device],
    options: Mapping[str, Any] | None = None,
    hlo: Path | None = None,
) -> Compiled:
    """Compile the train step for devices that need not exist, and measure the program.

    Args:
        config: The experiment, with its global batch.
        devices: What to compile for.
        options: The compiler's, if not its defaults.
        hlo: File for the text of the compiled program; None for none.

    Raises:
        ConfigError: the mesh or the batch does not fit the devices.
    """
    began = time.perf_counter()
    step = lower_train_step(config, training_mesh(config, devices))
    per_device_batch = config.training.batch_size // len(devices)
    state, placed = step.sharded.state_shapes, step.sharded.state_sharding
    held = {
        "parameters": bytes_per_device(state.params, placed.params),
        "ema": bytes_per_device(state.ema, placed.ema),
        "optimizer": bytes_per_device(state.opt_state, placed.opt_state),
        "frozen": bytes_per_device(step.frozen, step.sharded.frozen_sharding),
        "batch": bytes_per_device(step.batch, jax.tree.map(lambda _: step.sharded.batch_sharding, step.batch)),
    }
    try:
        compiled = step.lowered.compile(compiler_options=None if options is None else dict(options))
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error), sum(held.values()))
        if needed is None:
            raise
        return Compiled(
            per_device_batch=per_device_batch,
            memory=None,
            needed=needed,
            exchanges={},
            unknown_loops=0,
            seconds=time.perf_counter() - began,
        )
    analysis = compiled.memory_analysis()
    program = analysis.generated_code_size_in_bytes
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    attention = attention_tables(config, per_device_batch) if devices[0].platform == "cpu" else 0
    peak = kept + temporary + attention + program
    text = compiled.as_text()
    if hlo is not None:
        hlo.write_text(text)
    exchanges, unknown_loops = collectives(text)
    return Compiled(
        per_device_batch=per_device_batch,
        memory=Memory(
            **held,
            activations=temporary,
            attention=attention,
            program=program,
            other=kept - sum(held.values()),
            peak=peak,
        ),
        needed=peak,
        exchanges=exchanges,
        unknown_loops=unknown_loops,
        seconds=time.perf_counter() - began,
    )


def attention_tables(config: ExperimentConfig, per_device_batch: int) -> int:
    """Bytes of the tables that the longest attention of the U-Net works with on an accelerator.

    CPUs go block by block there and have none. Of scores and their gradient in float32, and weights in bfloat16, one
    each: what one transformer has at a time, with `training.remat` or without; of one block of queries, if accelerators
    are told to go by them, too.
    """
    model = config.model
    if config.stage != "diffusion":
        return 0
    side = model.image_size // model.vae.factor
    lengths = [(side >> level) ** 2 for level, attends in enumerate(model.unet.attention_levels) if attends]
    longest = max(lengths, default=0)
    if longest**2 < LONG_SCORES:
        return 0
    samples = -(-per_device_batch // config.training.accumulation_steps)
    queries = min(longest, GRADIENT_BLOCK) if BLOCKS else longest
    return samples * model.unet.num_attention_heads * queries * longest * (4 + 4 + 2)


def needed_memory(message: str, held: int) -> int | None:
    """Bytes that a compiler wanted, from its message that there are not as many; None if it says something else.

    Args:
        message: Of the compiler's error.
        held: What state, frozen networks and batch take: one of its messages is of the temporaries alone.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern, beside in ((r"Used ([\d.]+)([KMGT]) of", 0), (r"HLO temporaries \(([\d.]+)([KMGT])\)", held)):
        if found := re.search(pattern, message):
            return int(float(found.group(1)) * units[found.group(2)]) + beside
    return None


def largest_batch(first: Compiled, second: Compiled, available: int) -> int:
    """Largest per-device batch on the straight line through two compilations; 0 if not even one sample fits.

    The compiler works harder where memory is short, so that somewhat more may fit than the line says.

    Raises:
        ValueError: both compilations have the same batch.
    """
    if first.per_device_batch == second.per_device_batch:
        raise ValueError("a line needs two different batches")
    slope = (second.needed - first.needed) / (second.per_device_batch - first.per_device_batch)
    fixed = first.needed - slope * first.per_device_batch
    if slope <= 0:
        # Nothing grows: all that is known is that the larger of the two fits, or that none does.
        return max((c.per_device_batch for c in (first, second) if c.needed <= available), default=0)
    return max(0, math.floor((available - fixed) / slope))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a plan says.

    Attributes:
        name: The experiment.
        target: Topology or accelerator, as it was named.
        devices: How many.
        fsdp_devices: How many of them share each copy of the parameters.
        available: Bytes that a device has for a program.
        compiled: The compilation at the batch that was asked for.
        other: A second one, for the line; None if it was not asked for.
        largest: Largest per-device batch that fits.
        flops_per_image: Matrix operations of one sample, forward and backward.
        fastest_step: Seconds of a step at the chip's peak: no step is faster.
        virtual: CPUs stood in for the devices.
        versions: Of what compiled it.
    """

    name: str
    target: str
    devices: int
    fsdp_devices: int
    available: int
    compiled: Compiled
    other: Compiled | None
    largest: int | None
    flops_per_image: float
    fastest_step: float
    virtual: bool
    versions: dict[str, str]


def make_plan(
    config: ExperimentConfig,
    devices: Sequence[jax.Device],
    accelerator: Accelerator,
    target: str,
    per_device_batch: int,
    other_batch: int | None,
    options: Mapping[str, Any] | None = None,
    hlo: Path | None = None,
) -> Plan:
    """Compile once, or twice for the largest batch that fits, and put the numbers together.

    Args:
        config: The experiment; its global batch gives way to `per_device_batch`.
        devices: What to compile for.
        accelerator: Its memory and its peak.
        target: How the devices were named.
        per_device_batch: Samples of each device.
        other_batch: Another such number for the line; None for no line.
        options: The compiler's, if not its defaults.
        hlo: File for the text of the program that was asked for; None for none.

    Raises:
        ConfigError: the mesh does not fit the devices.
    """
    count, mesh = len(devices), training_mesh(config, devices)
    asked = with_per_device_batch(config, per_device_batch, count)
    compiled = compile_step(asked, devices, options, hlo)
    other = None
    if other_batch is not None:
        other = compile_step(with_per_device_batch(config, other_batch, count), devices, options)
    flops = train_flops_per_image(asked)
    return Plan(
        name=config.name,
        target=target,
        devices=count,
        fsdp_devices=mesh.shape["fsdp"],
        available=accelerator.memory_bytes,
        compiled=compiled,
        other=other,
        largest=None if other is None else largest_batch(compiled, other, accelerator.memory_bytes),
        flops_per_image=flops,
        fastest_step=flops * per_device_batch / accelerator.peak_flops,
        virtual=devices[0].platform == "cpu",
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of jax, jaxlib and, where it is installed, libtpu."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
