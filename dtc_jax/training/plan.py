"""`python -m dtc_jax.training.plan NAME`: memory, work and traffic of a train step on machines that are not here.

The train step is compiled ahead of time for a TPU topology, or for as many virtual CPU devices; no parameter exists.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.command import find_configs, read_config
from dtc_jax.training.hardware import ACCELERATORS, GIB, Accelerator, accelerator, accelerator_named
from dtc_jax.training.planning import Compiled, Plan, make_plan, topology_devices, training_mesh

PROGRAM = "python -m dtc_jax.training.plan"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the command takes beside the name of the experiment."""

    topology: str | None = None
    """TPUs: KIND:AxB or KIND:AxBxC, such as v5e:4x4 (16 chips), v5e:16x16 (256), v5p:2x2x4 (16)."""
    slices: int = 1
    """How many slices of that topology train together. Virtual devices are one slice unless training.slices divides
    them."""
    devices: int | None = None
    """Instead of a topology: how many virtual CPU devices stand in for the accelerators."""
    accelerator: str | None = None
    """What the virtual devices stand in for, for its memory and peak: see dtc_jax/training/hardware.py."""
    per_device_batch: int | None = None
    """Samples of each device; by default what training.batch_size gives each, and at least one."""
    largest: bool = True
    """Compile once more with another batch, and say what the largest is that fits."""
    compile_effort: float = -1.0
    """With --topology: how hard the compiler works to make the program fast, from -1 to 1; 0 is what training has. With
    -1 it needs a fraction of the time, and the program rather more memory (docs/planning.md)."""
    json: bool = False
    """Print JSON instead of tables."""
    hlo: Path | None = None
    """File for the compiled program's text, for a closer look at what it exchanges and keeps."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    """The experiment, field by field."""


def main(argv: Sequence[str]) -> int:
    """Plan what the command line names; returns the exit code (2 for errors of use, each one line)."""
    configs = find_configs(CONFIGS)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(configs))
        return 0 if argv else 2
    name = argv[0]
    if not configs:
        print(f"plan: no experiments in {CONFIGS}: run it from a checkout of the project", file=sys.stderr)
        return 2
    if name not in configs:
        print(f"plan: no experiment {name!r}; there are: {', '.join(configs)}", file=sys.stderr)
        return 2
    try:
        default = Arguments(config=read_config(configs[name])[0])
        arguments = parse_arguments(Arguments, argv[1:], f"{PROGRAM} {name}", default)
        plan = plan_of(arguments)
    except (UsageError, ConfigError, OSError) as error:
        print(f"plan: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plan: interrupted", file=sys.stderr)
        return 130
    print(json.dumps(dataclasses.asdict(plan), indent=2) if arguments.json else report(plan))
    return 0


def usage(configs: dict[str, Path]) -> str:
    """What --help prints."""
    lines = [
        f"usage: {PROGRAM} NAME --topology v5e:4x4 [--per-device-batch N] [--FIELD VALUE ...]",
        f"       {PROGRAM} NAME --devices 8 --accelerator a100-40g [--per-device-batch N] [--FIELD VALUE ...]",
        "",
        "experiments:",
    ]
    lines += [f"  {name:18} {read_config(path)[1]}" for name, path in configs.items()]
    return "\n".join([*lines, "", f"{PROGRAM} NAME --help explains every flag."])


def plan_of(arguments: Arguments) -> Plan:
    """Carry out the command.

    Raises:
        ConfigError: no devices, two kinds of them, or none that fit the experiment.
    """
    devices, kind, target = target_devices(arguments)
    training = arguments.config.training
    batch = arguments.per_device_batch
    if batch is None:
        batch, rest = divmod(training.batch_size, len(devices))
        if rest:
            raise ConfigError(
                f"training.batch_size = {training.batch_size} does not split over {len(devices)} devices: "
                "name --per-device-batch"
            )
    parts = training.accumulation_steps
    if batch < 1 or batch % parts:
        raise ConfigError(
            f"--per-device-batch = {batch} must be at least 1 and a multiple of training.accumulation_steps = {parts}"
        )
    if not -1 <= arguments.compile_effort <= 1:
        raise ConfigError(f"--compile-effort = {arguments.compile_effort:g} must be from -1 to 1")
    options = None if arguments.topology is None else {"exec_time_optimization_effort": arguments.compile_effort}
    other = (batch // parts // 2 or 2) * parts if arguments.largest else None
    # Refused before minutes of compiling.
    training_mesh(arguments.config, devices)
    times = "twice" if other else "once"
    print(f"compiling for {target}, {times}: minutes each at full size", file=sys.stderr, flush=True)
    return make_plan(arguments.config, devices, kind, target, batch, other, options, arguments.hlo)


def target_devices(arguments: Arguments) -> tuple[list[jax.Device], Accelerator, str]:
    """Devices to compile for, what they are, and how to call them.

    Raises:
        ConfigError: none, or two kinds, are named, or one that is not known.
    """
    # Nothing runs here, and a machine's own accelerators are not what is planned for.
    jax.config.update("jax_platforms", "cpu")
    if (arguments.topology is None) == (arguments.devices is None):
        raise ConfigError("name either a --topology, or --devices with --accelerator")
    if arguments.slices < 1:
        raise ConfigError(f"--slices = {arguments.slices} must be at least 1")
    if arguments.topology is not None:
        if arguments.accelerator is not None:
            raise ConfigError(f"--topology {arguments.topology} says what the accelerator is: leave out --accelerator")
        devices = topology_devices(arguments.topology, arguments.slices)
        found = accelerator(devices[0].device_kind)
        if found is None:
            raise ConfigError(
                f"--topology {arguments.topology}: memory and peak of {devices[0].device_kind} are not known: add them "
                "to dtc_jax/training/hardware.py"
            )
        name = arguments.topology if arguments.slices == 1 else f"{arguments.slices} slices of {arguments.topology}"
        return devices, found, name
    assert arguments.devices is not None
    if arguments.slices != 1:
        raise ConfigError(
            f"--slices {arguments.slices} is for a --topology: virtual devices are divided by --training.slices"
        )
    if arguments.devices < 1:
        raise ConfigError(f"--devices = {arguments.devices} must be at least 1")
    known = ", ".join(entry.name for entry in ACCELERATORS)
    if arguments.accelerator is None:
        raise ConfigError(f"--devices needs --accelerator, one of {known}")
    named = accelerator_named(arguments.accelerator)
    if named is None:
        raise ConfigError(f"no accelerator {arguments.accelerator!r}; there are: {known}")
    if jax.config.jax_num_cpu_devices < arguments.devices:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    devices = jax.devices("cpu")[: arguments.devices]
    return devices, named, f"{arguments.devices} x {named.name}"


def report(plan: Plan) -> str:
    """The plan as a person reads it."""
    available = f"{plan.available / GIB:.2f} GiB"
    data = plan.devices // plan.fsdp_devices
    lines = [
        f"{plan.name} on {plan.target}: {plan.devices} devices, mesh data {data} x fsdp {plan.fsdp_devices}, "
        f"{plan.compiled.per_device_batch} samples on each",
        "",
        *memory_lines(plan.compiled, available, plan.available),
        "",
        f"{'work':14} {plan.flops_per_image / 1e12:.3g} TFLOP an image; at the chips' peak "
        f"{plan.fastest_step:.3g} s a step, "
        f"{plan.compiled.per_device_batch * plan.devices / plan.fastest_step:.3g} images/s",
    ]
    for kind, exchange in plan.compiled.exchanges.items():
        lines.append(f"{kind:18} {exchange.count:6} a step, {size(exchange.bytes)}")
    if plan.compiled.unknown_loops:
        lines.append(f"(bodies of {plan.compiled.unknown_loops} loops of unknown length counted once)")
    if plan.other is not None:
        lines += [
            "",
            f"largest per-device batch on the line through {plan.other.per_device_batch} ({size(plan.other.needed)}) "
            f"and {plan.compiled.per_device_batch} ({size(plan.compiled.needed)}): {plan.largest}",
        ]
    if plan.virtual:
        lines += ["", CPU_CAVEAT]
    lines += ["", "compiled in " + " and ".join(f"{c.seconds:.0f} s" for c in (plan.compiled, plan.other) if c)]
    lines[-1] += " by " + ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return "\n".join(lines)


CPU_CAVEAT = """\
Parameters, average, optimizer and frozen networks are exact. The activations are the CPU compiler's, which fuses less
than a GPU's and computes some bfloat16 operations in float32; the tables of attention, which CPUs do without, are an
estimate beside them."""


def memory_lines(compiled: Compiled, available: str, bytes_available: int) -> list[str]:
    """A line for each part of the memory."""
    verdict = "fits" if compiled.needed <= bytes_available else "DOES NOT FIT"
    if compiled.memory is None:
        return [f"{'peak':14} {size(compiled.needed)} of {available}: {verdict} (the compiler gave up)"]
    parts = dataclasses.asdict(compiled.memory)
    peak = parts.pop("peak")
    lines = [f"{name:14} {size(value)}" for name, value in parts.items() if value or name != "attention"]
    return [*lines, f"{'peak':14} {size(peak)} of {available}: {verdict}"]


def size(count: float) -> str:
    """Bytes for a person."""
    if abs(count) >= 0.1 * GIB:
        return f"{count / GIB:.2f} GiB"
    return f"{count / 2**20:.2f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
