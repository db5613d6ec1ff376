"""Plans: their numbers add up and are those of the step that trains; errors of use are one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training import plan as command
from dtc_jax.training import planning
from dtc_jax.training.abstract import abstract_batch, abstract_params
from dtc_jax.training.command import read_config
from dtc_jax.training.hardware import GIB, accelerator_named
from dtc_jax.training.initial import initial_params
from dtc_jax.training.params import split_trainable
from dtc_jax.training.planning import Compiled, Plan, attention_tables, largest_batch, make_plan, needed_memory
from dtc_jax.training.sharding import make_mesh
from dtc_jax.training.source import make_source
from dtc_jax.weights.model_folder import flatten_params

CONFIG: ExperimentConfig = read_config(Path(__file__).resolve().parents[2] / "configs" / "test.py")[0]
ACCUMULATION = ("--training.accumulation-steps", "2")
H100 = ("--devices", "4", "--accelerator", "h100")
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def training(config: ExperimentConfig, **changes: Any) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


# The smallest step that trains something and leaves something: a compilation of seconds.
DECODER = training(
    dataclasses.replace(CONFIG, stage="autoencoder"), trainable="^vae/decoder/", fsdp_devices=4, fsdp_min_size=64
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    accelerator = accelerator_named("a100-40g")
    assert accelerator is not None
    return make_plan(DECODER, jax.devices()[:4], accelerator, "4 x a100-40g", 2, None, FAST_COMPILE)


def test_parts_are_those_of_the_state(plan: Plan) -> None:
    memory = plan.compiled.memory
    assert memory is not None
    trainable, frozen = abstract_params(DECODER)

    def share(shape: tuple[int, ...]) -> int:
        split = math.prod(shape) >= 64 and any(size % 4 == 0 for size in shape)
        return math.prod(shape) // (4 if split else 1)

    elements = sum(share(leaf.shape) for leaf in trainable.values())
    assert memory.parameters == memory.ema == 4 * elements
    # Two moments, and the counters of the optimizer.
    assert 0 <= memory.optimizer - 2 * memory.parameters <= 64
    assert memory.frozen == 4 * sum(share(leaf.shape) for leaf in frozen.values())
    assert memory.batch == 2 * (16 * 16 * (3 + 1 + 3 + 3) + 4)
    whole = 4 * sum(math.prod(leaf.shape) for leaf in trainable.values())
    assert 0.25 <= memory.parameters / whole < 0.3


def test_peak_is_the_sum(plan: Plan) -> None:
    memory = plan.compiled.memory
    assert memory is not None and memory.activations > 0
    parts = dataclasses.asdict(memory)
    assert parts.pop("peak") == sum(parts.values()) == plan.compiled.needed
    # What is beside the state: the metrics, and arguments that this step does not read.
    assert abs(memory.other) < 0.2 * memory.parameters
    assert plan.largest is None and plan.devices == 4 and plan.virtual


def test_split_parameters_are_exchanged(plan: Plan) -> None:
    memory = plan.compiled.memory
    assert memory is not None
    exchanges = plan.compiled.exchanges
    # No activation leaves its device: the parameters are gathered, and the gradients summed.
    assert set(exchanges) <= {"all-gather", "all-reduce", "reduce-scatter"}
    # Every device needs what the others have of the parameters, and has a part of every gradient.
    assert memory.parameters < exchanges["all-gather"].bytes < 4 * 4 * (memory.parameters + memory.frozen)
    assert sum(exchanges[kind].bytes for kind in exchanges if "reduce" in kind) > memory.parameters


def test_report_names_every_part(plan: Plan) -> None:
    text = command.report(plan)
    for word in ("parameters", "ema", "optimizer", "frozen", "activations", "peak", "fits", "TFLOP", "all-gather"):
        assert word in text
    assert "an upper bound" not in text and "estimate" in text
    assert json.loads(json.dumps(dataclasses.asdict(plan)))["compiled"]["memory"]["peak"] == plan.compiled.needed


def compiled(batch: int, needed: float) -> Compiled:
    return Compiled(per_device_batch=batch, memory=None, needed=int(needed), exchanges={}, unknown_loops=0, seconds=1.0)


def test_largest_batch_is_on_the_line() -> None:
    two, four = compiled(2, 4 * GIB), compiled(4, 6 * GIB)
    # 2 GiB, and one for each sample.
    assert largest_batch(two, four, 16 * GIB) == largest_batch(four, two, 16 * GIB) == 14
    assert largest_batch(two, four, int(15.9 * GIB)) == 13
    assert largest_batch(two, four, GIB) == 0
    # A program that does not grow says nothing of larger ones.
    assert largest_batch(two, compiled(4, 3 * GIB), 16 * GIB) == 4
    with pytest.raises(ValueError, match="two different batches"):
        largest_batch(two, two, GIB)


def test_what_a_compiler_says_that_it_lacks() -> None:
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm."
    assert needed_memory(used, GIB) == int(24.5 * GIB)
    # As libtpu 0.0.42 says it; arguments are not among the temporaries.
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.50G) exceeds "
        "available HBM (15.75G)."
    )
    assert needed_memory(temporaries, GIB) == int(23.5 * GIB)
    assert needed_memory("INTERNAL: Used 24.50G of 15.75G", GIB) is None
    refused = Compiled(per_device_batch=8, memory=None, needed=24 * GIB, exchanges={}, unknown_loops=0, seconds=1.0)
    assert "DOES NOT FIT" in command.memory_lines(refused, "15.75 GiB", int(15.75 * GIB))[0]


def test_tables_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    sd15 = read_config(Path(__file__).resolve().parents[2] / "configs" / "sd15.py")[0]
    assert attention_tables(sd15, 4) == 4 * 8 * 4096**2 * 10
    assert attention_tables(training(sd15, accumulation_steps=2, batch_size=64), 4) == 2 * 8 * 4096**2 * 10
    # 8x8 latents: nothing is long.
    assert attention_tables(CONFIG, 4) == 0
    monkeypatch.setattr(planning, "BLOCKS", True)
    assert attention_tables(sd15, 4) == 4 * 8 * 512 * 4096 * 10


@pytest.mark.parametrize(
    ("stage", "trainable"), [("diffusion", "^unet/"), ("vgg", "^heads/"), ("autoencoder", "^vae/")]
)
def test_abstract_parameters_are_the_real_ones(stage: Any, trainable: str) -> None:
    config = training(dataclasses.replace(CONFIG, stage=stage), trainable=trainable)
    real = split_trainable(flatten_params(initial_params(config, jax.random.key(0))), config.training.trainable)
    for arrays, shapes in zip(real, abstract_params(config), strict=True):
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in arrays.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in shapes.items()
        }


def test_frozen_networks_in_bfloat16() -> None:
    _, frozen = abstract_params(training(CONFIG, frozen_dtype="bfloat16"))
    assert {leaf.dtype for leaf in frozen.values()} == {np.dtype("bfloat16")}


def test_abstract_batch_is_the_source_s() -> None:
    config = training(CONFIG, batch_size=4)
    batch = jax.eval_shape(lambda: make_source(config, make_mesh(1, jax.devices()[:1]))(0))
    for name, leaf in abstract_batch(config, 4).items():
        assert (leaf.shape, leaf.dtype) == (batch[name].shape, batch[name].dtype), name


def test_cached_conditions_are_in_the_batch() -> None:
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, cached=("tokens", "latents")))
    batch = abstract_batch(config, 4)
    assert batch["tokens"].shape == (4, 5, 16)
    assert batch["latent_mean"].shape == batch["masked_latents"].shape == (4, 8, 8, 4)


# ---------------------------------------------------------------------------------------------------- errors of use


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert command.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no experiment 'nothing'; there are: dreampaint, pbe_clip_all, "),
        (["test"], "name either a --topology, or --devices with --accelerator"),
        (["test", "--topology", "v5e:4x4", "--devices", "8"], "name either a --topology"),
        (["test", "--topology", "v5e:4x4", "--accelerator", "v5e"], "leave out --accelerator"),
        (["test", "--devices", "8"], "--devices needs --accelerator, one of v4, v5e"),
        (["test", "--devices", "8", "--accelerator", "a100"], "no accelerator 'a100'; there are: v4, v5e"),
        (["test", "--devices", "0", "--accelerator", "h100"], "--devices = 0 must be at least 1"),
        (["test", "--devices", "3", "--accelerator", "h100"], "training.batch_size = 8 does not split over 3 devices"),
        (
            ["test", *H100, "--per-device-batch", "3", *ACCUMULATION],
            "must be at least 1 and a multiple of training.accumulation_steps = 2",
        ),
        (
            ["test", *H100, "--training.fsdp-devices", "3"],
            "training.fsdp_devices = 3 must divide",
        ),
        (["test", *H100, "--training.slices", "3"], "training.slices = 3 must divide the number of devices, 4"),
        (["test", *H100, "--slices", "2"], "--slices 2 is for a --topology: virtual devices are divided by --training"),
        (["test", "--topology", "v5e:4x4", "--slices", "0"], "--slices = 0 must be at least 1"),
        (["test", "--topologie", "v5e:4x4"], "--topolog"),
        (["test", *H100, "--compile-effort", "-2"], "--compile-effort = -2 must be from -1 to 1"),
        (["test", *H100, "--compile-effort", "1.5"], "--compile-effort = 1.5 must be from -1 to 1"),
        (["test", *H100, "--compile-effort", "nan"], "--compile-effort = nan must be from -1 to 1"),
    ],
)
def test_errors_of_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(arguments, capsys)


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: Any) -> Plan:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "plan_of", interrupt)
    assert command.main(["test", "--devices", "1"]) == 130
    assert capsys.readouterr().err == "plan: interrupted\n"


def test_without_libtpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = error_of(["test", "--topology", "v5e:4x4"], capsys)
    assert "libtpu" in message and ".venv-tpu/bin/pip install -e '.[tpu]'" in message


def test_unknown_topology(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("INVALID_ARGUMENT: Invalid TPU external name: TPU v99\nmore")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(planning.topologies, "get_topology_desc", refuse)
    message = error_of(["test", "--topology", "v99:4x4"], capsys)
    assert message.startswith(
        "plan: --topology v99:4x4: INVALID_ARGUMENT: Invalid TPU external name: TPU v99; it is KIND"
    )


@pytest.mark.parametrize(
    ("target", "flags", "expected"),
    [
        (("--topology", "v5e:4x4"), (), {"exec_time_optimization_effort": -1.0}),
        (("--topology", "v5e:4x4"), ("--compile-effort", "0"), {"exec_time_optimization_effort": 0.0}),
        (H100, (), None),
    ],
)
def test_effort_is_the_tpu_compiler_s(
    target: tuple[str, ...], flags: tuple[str, ...], expected: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planned(Exception):
        pass

    seen = []

    def see(*arguments: Any) -> Plan:
        seen.append(inspect.signature(make_plan).bind(*arguments).arguments["options"])
        raise Planned

    kind = accelerator_named("v5e")
    assert kind is not None
    monkeypatch.setattr(command, "topology_devices", lambda topology, slices: jax.devices()[:4])
    monkeypatch.setattr(command, "accelerator", lambda name: kind)
    monkeypatch.setattr(command, "make_plan", see)
    with pytest.raises(Planned):
        command.main(["test", *target, *flags])
    assert seen == [expected]


SLICES = [
    ((), (4, 1)),
    (("--training.fsdp-devices", "0"), (1, 4)),
    (("--training.fsdp-devices", "0", "--training.slices", "2"), (2, 2)),
]


@pytest.mark.parametrize(("flags", "shape"), SLICES)
def test_mesh_is_training_s(flags: tuple[str, ...], shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    class Lowered(Exception):
        pass

    seen = []

    def see(config: ExperimentConfig, mesh: jax.sharding.Mesh) -> None:
        seen.append(dict(mesh.shape))
        raise Lowered

    monkeypatch.setattr(planning, "lower_train_step", see)
    with pytest.raises(Lowered):
        command.main(["test", *H100, *flags])
    assert seen == [dict(zip(("data", "fsdp"), shape, strict=True))]


@pytest.mark.parametrize(("flags", "shape"), SLICES)
def test_report_tells_the_mesh(
    flags: tuple[str, ...],
    shape: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(planning, "compile_step", lambda *_: compiled(2, GIB))
    monkeypatch.setattr(planning, "train_flops_per_image", lambda config: 1e12)
    arguments = ["test", *H100, *flags, "--no-largest"]
    assert command.main(arguments) == 0
    assert f"4 devices, mesh data {shape[0]} x fsdp {shape[1]}, 2 samples on each" in capsys.readouterr().out
    assert command.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fsdp_devices"] == shape[1]


def test_every_compilation_gets_the_options(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    seen = []

    def see(config: ExperimentConfig, devices: Any, options: Any, hlo: Any = None) -> Compiled:
        seen.append(options)
        return dataclasses.replace(plan.compiled, per_device_batch=config.training.batch_size // len(devices))

    monkeypatch.setattr(planning, "compile_step", see)
    kind = accelerator_named("v5e")
    assert kind is not None
    make_plan(DECODER, jax.devices()[:4], kind, "v5e:2x2", 2, 4, {"exec_time_optimization_effort": -1.0})
    assert seen == [{"exec_time_optimization_effort": -1.0}] * 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install '.[tpu]'")
@pytest.mark.slow
def test_tpu() -> None:
    devices = planning.topology_devices("v5e:2x2")
    assert len(devices) == 4 and {device.device_kind for device in devices} == {"TPU v5 lite"}
    config = training(CONFIG, fsdp_devices=4, fsdp_min_size=64, batch_size=4)
    found = planning.compile_step(config, devices, {"exec_time_optimization_effort": -1.0})
    assert found.memory is not None and found.memory.program > 0
    with pytest.raises(ConfigError, match="not divisible"):
        planning.topology_devices("v5e:5x5")
