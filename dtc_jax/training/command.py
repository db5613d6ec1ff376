"""The command line of train.py: `train.py NAME --run-dir DIR [--init-from DIR] [--field.sub value]`."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import logging
import math
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.cluster import ClusterOptions, connect, launched, leave
from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.run_directory import has_checkpoint, starting_folders
from dtc_jax.training.shared_folder import check_local_path, check_shared_folder
from dtc_jax.training.step import NonFiniteError
from dtc_jax.training.stopping import Stopped
from dtc_jax.weights.model_folder import ModelFolderError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What train.py takes beside the name of the experiment."""

    run_dir: Path
    """Run folder: config.json, checkpoints, metrics, sample grids, and the trained model folder. An unfinished run in
    it is resumed."""
    init_from: tuple[Path, ...] = ()
    """Model or run folders whose networks the run starts from; with none, the experiment's prerequisites are trained
    first."""
    cpu_devices: int | None = None
    """Virtual devices where training runs on CPUs; by default as many as cores that divide the batch (one thread each
    is several times as fast as one device with many threads). Without meaning on GPUs and TPUs."""
    cluster: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()
    """How this process joins the others."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    """The experiment, field by field."""


def find_configs(directory: Path) -> dict[str, Path]:
    """The experiments in a folder, by name."""
    return {path.stem: path for path in sorted(directory.glob("*.py")) if not path.stem.startswith("_")}


def read_config(path: Path) -> tuple[ExperimentConfig, str]:
    """CONFIG and the one-line description of an experiment's file."""
    spec = importlib.util.spec_from_file_location(f"dtc_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONFIG, (module.__doc__ or "").strip().splitlines()[0]


def usage(configs: dict[str, Path]) -> str:
    """What `train.py --help` prints."""
    lines = ["usage: train.py NAME --run-dir DIR [--init-from DIR ...] [--FIELD VALUE ...]", "", "experiments:"]
    lines += [f"  {name:18} {read_config(path)[1]}" for name, path in configs.items()]
    return "\n".join([*lines, "", "train.py NAME --help explains every field of an experiment."])


def main(argv: Sequence[str], config_dir: Path) -> int:
    """Train what the command line names; returns the exit code.

    0: finished; 2: an error, or 1: a loss that is not finite, in one line; 143 or 130: stopped by SIGTERM or Ctrl-C,
    and the same command goes on.
    """
    configs = find_configs(config_dir)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(configs))
        return 0 if argv else 2
    name = argv[0]
    if name not in configs:
        print(f"train.py: no experiment {name!r}; there are: {', '.join(configs)}", file=sys.stderr)
        return 2
    # Tracing makes many objects that stay: with Python's defaults its collector, which looks through them again and
    # again, takes a fifth of the time until the first step.
    gc.set_threshold(100_000, 50, 100)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("dtc_jax").setLevel(logging.INFO)
    try:
        default = Arguments(run_dir=tyro.MISSING, config=read_config(configs[name])[0])
        arguments = parse_arguments(Arguments, argv[1:], f"train.py {name}", default)
        batch_sizes = [
            arguments.config.training.batch_size,
            *(read_config(configs[stage])[0].training.batch_size for stage in missing_stages(arguments, configs)),
        ]
        check_local_path(arguments.run_dir)
        processes = launched(os.environ)
        count = arguments.cluster.num_processes or (processes and processes.count) or 1
        # Every stage's batch must split over the devices of all processes.
        local_count = (processes and processes.local_count) or 1
        use_cpu_cores(arguments.cpu_devices, math.gcd(*batch_sizes) // count, local_count)
        connect(arguments.cluster, os.environ)
        check_shared_folder(arguments.run_dir)
        run_with_prerequisites(arguments, configs)
    except (UsageError, ConfigError, ModelFolderError, OSError) as error:
        return failed(str(error).splitlines()[0], 2)
    except Stopped as stopped:
        # All processes stop together.
        print(f"train.py: {stopped}; the same command goes on from there", file=sys.stderr)
        return stopped.exit_code
    except NonFiniteError as error:
        return failed(str(error), 1)
    except KeyboardInterrupt:
        return failed("interrupted; the same command resumes from the newest checkpoint", 130)
    except jax.errors.JaxRuntimeError as error:
        reason = runtime_failure(str(error), jax.process_count())
        if reason is None:
            raise
        return failed(reason, 1)
    except Exception:
        # A fault of the code keeps its traceback; one of several processes must not wait for the others on its way out.
        if jax.distributed.is_initialized():
            traceback.print_exc()
            leave(1)
        raise
    return 0


def failed(reason: str, code: int) -> int:
    """Say why in one line. One of several processes ends here: its normal exit would wait for the others."""
    print(f"train.py: {reason}", file=sys.stderr)
    if jax.distributed.is_initialized():
        leave(code)
    return code


def runtime_failure(message: str, processes: int) -> str | None:
    """What to do about an error of JAX's runtime, in one line; None for those that are a fault of the code."""
    first = message.strip().splitlines()[0] if message.strip() else "unknown"
    if "RESOURCE_EXHAUSTED" in message:
        return (
            f"out of device memory ({first}): lower training.batch_size, or split the parameters over more devices "
            "with training.fsdp_devices"
        )
    if processes > 1:
        return f"stopped, since another process ended or the network failed ({first}); its log says why"
    return None


def use_cpu_cores(requested: int | None, batch_size: int, processes: int = 1) -> None:
    """Split the CPU into virtual devices, before JAX starts; what the environment says stands.

    Args:
        requested: How many; None for as many as this process's cores that divide the batch.
        batch_size: Samples that this process takes.
        processes: How many processes share the machine.

    Raises:
        ConfigError: fewer than one device requested.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // processes)
    if requested is not None:
        if requested < 1:
            raise ConfigError(f"--cpu-devices must be at least 1, not {requested}")
        jax.config.update("jax_num_cpu_devices", requested)
    elif cpu_devices() < 1:
        fitting = next(count for count in range(cores, 0, -1) if batch_size % count == 0)
        jax.config.update("jax_num_cpu_devices", fitting)
    # The CPU backend's thread pool has as many threads as cores unless NPROC says otherwise. A device that waits in a
    # collective holds a thread: with no more threads than devices, those that should feed it may never get one.
    os.environ.setdefault("NPROC", str(max(cores, 4 * cpu_devices())))


def cpu_devices() -> int:
    """What JAX's setting says; -1 if nothing has set it."""
    return jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]


def missing_stages(arguments: Arguments, configs: dict[str, Path]) -> list[str]:
    """The prerequisites that must be trained first: none where folders are given, now or when the run was started.

    Raises:
        ConfigError: a prerequisite that is no experiment.
    """
    run_dir = arguments.run_dir
    if arguments.init_from or has_checkpoint(run_dir) or starting_folders(run_dir):
        return []
    for name in arguments.config.prerequisites:
        if name not in configs:
            raise ConfigError(f"prerequisites: no experiment {name!r}; there are: {', '.join(configs)}")
    return [
        name
        for name in arguments.config.prerequisites
        if not (run_dir / "prerequisites" / name / "model" / "config.json").is_file()
    ]


def run_with_prerequisites(arguments: Arguments, configs: dict[str, Path]) -> None:
    """Train the experiment, after its prerequisites (each once, in RUN/prerequisites/NAME) if no folder was given."""
    from dtc_jax.training.checkpoints import quiet_orbax
    from dtc_jax.training.loop import checked_mesh, train

    quiet_orbax()
    config, run_dir = arguments.config, arguments.run_dir
    stages = {}
    for name in missing_stages(arguments, configs):
        earlier = read_config(configs[name])[0]
        # Only the generated world has the labels that the VGG learns from.
        data = dataclasses.replace(earlier.data, seed=config.data.seed) if earlier.stage == "vgg" else config.data
        stages[name] = dataclasses.replace(earlier, model=config.model, data=data)
    # What cannot work is said now, and not after the hours of an earlier stage.
    for each in (*stages.values(), config):
        checked_mesh(each)
    for name, stage in stages.items():
        train(stage, run_dir / "prerequisites" / name)
    # A run that was started from folders of one's own knows them.
    prerequisites = () if starting_folders(run_dir) else config.prerequisites
    trained = (run_dir / "prerequisites" / name / "model" for name in prerequisites)
    train(config, run_dir, arguments.init_from or [folder for folder in trained if folder.is_dir()])
