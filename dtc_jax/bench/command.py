"""What the measurements of an experiment share: their command line, and a process for PyTorch's side of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtc_jax.arguments import UsageError, parse_arguments
from dtc_jax.config import ConfigError
from dtc_jax.training.command import find_configs, read_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULT = "sd15"
"""What is measured if the command line does not begin with an experiment's name."""


def run(
    name: str,
    argv: Sequence[str],
    kind: type[Any],
    measure: Callable[[Any, str], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> int:
    """Measure what a command line asks for, and print it; returns the exit code (2 for errors of use, each one line).

    Args:
        name: Of the measurement, as in `python -m dtc_jax.bench NAME`.
        argv: An experiment's name or none, and flags.
        kind: A dataclass of the flags, with a field `config` for the experiment and `json`.
        measure: From arguments and the whole command to a report.
        table: The report as a person reads it.
    """
    program, configs = f"python -m dtc_jax.bench {name}", find_configs(CONFIGS)
    named = bool(argv) and not argv[0].startswith("-")
    experiment, flags = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    try:
        if experiment not in configs:
            raise ConfigError(f"no experiment {experiment!r}; there are: {', '.join(configs)}")
        default = kind(config=read_config(configs[experiment])[0])
        arguments = parse_arguments(kind, flags, f"{program} {experiment}", default)
        report = measure(arguments, f"{program} {' '.join(argv)}".strip())
    except (UsageError, ConfigError, OSError) as error:
        print(f"dtc_jax.bench {name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if arguments.json else table(report))
    return 0


def check_positive(arguments: Any, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        ConfigError: one of these fields is.
    """
    for name in names:
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")


def without_pytorch() -> str | None:
    """Why there can be no PyTorch side here, whatever the experiment; None if there can."""
    absent = [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed (pip install 'dtc-jax[pytorch]')" if absent else None


def answer(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """What a module answers to a request in a process of its own, or {"failed": the last line of its errors}."""
    program = [sys.executable, "-m", module]
    done = subprocess.run(program, input=json.dumps(request), capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    if done.returncode < 0:
        return {"failed": f"{module} was stopped by signal {-done.returncode} (out of memory?)"}
    return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
