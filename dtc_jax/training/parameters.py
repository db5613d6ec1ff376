"""`python -m dtc_jax.training.parameters NAME ...`: how many parameters each network of an experiment has.

    python -m dtc_jax.training.parameters sd15 sd15_addition pbe_clip_cls

Counted from shapes alone: nothing is allocated. Errors of use end with exit code 2 and one line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtc_jax.config import ConfigError, ExperimentConfig
from dtc_jax.training.abstract import abstract_params
from dtc_jax.training.command import find_configs, read_config

PROGRAM = "python -m dtc_jax.training.parameters"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

ORDER = (
    "unet",
    "hint_encoder",
    "hint_adapter",
    "fusion",
    "reference_projection",
    "null_tokens",
    "prompts",
    "reference_encoder",
    "vae",
    "vgg",
    "hed",
)
"""Of the table's columns: what is trained first."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of one experiment: of every network that its training reads, and in all.

    Attributes:
        networks: By name.
        trained: What `training.trainable` matches.
        frozen: The rest.
    """

    networks: Mapping[str, int]
    trained: int
    frozen: int


def count_parameters(config: ExperimentConfig) -> Count:
    """Count the parameters of an experiment.

    Raises:
        ConfigError: `training.trainable` matches nothing.
    """
    trained, frozen = ({path: math.prod(leaf.shape) for path, leaf in tree.items()} for tree in abstract_params(config))
    networks: dict[str, int] = {}
    for path, size in (*trained.items(), *frozen.items()):
        name = path.split("/")[0]
        networks[name] = networks.get(name, 0) + size
    return Count(networks=networks, trained=sum(trained.values()), frozen=sum(frozen.values()))


def table(counts: Mapping[str, Count]) -> str:
    """A Markdown table: a row for each experiment, a column for each network that any of them has."""
    present = {name for count in counts.values() for name in count.networks}
    names = [*(name for name in ORDER if name in present), *sorted(present - set(ORDER))]
    rows = [["experiment", *names, "trained", "frozen"], ["---", *["---:"] * (len(names) + 2)]]
    for experiment, count in counts.items():
        sizes = [f"{count.networks[name]:,}" if name in count.networks else "" for name in names]
        rows.append([experiment, *sizes, f"{count.trained:,}", f"{count.frozen:,}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: Sequence[str]) -> int:
    """Print the table of the experiments that the command line names; returns the exit code."""
    configs = find_configs(CONFIGS)
    if not argv or {"-h", "--help"} & set(argv):
        lines = [f"usage: {PROGRAM} NAME [NAME ...]", "", "Prints a table of the parameters of each network.", ""]
        lines += ["experiments:", *(f"  {name:26} {read_config(path)[1]}" for name, path in configs.items())]
        print("\n".join(lines))
        return 0 if argv else 2
    unknown = [name for name in argv if name not in configs]
    if unknown:
        print(f"parameters: no experiment {unknown[0]!r}; there are: {', '.join(configs)}", file=sys.stderr)
        return 2
    try:
        print(table({name: count_parameters(read_config(configs[name])[0]) for name in argv}))
    except ConfigError as error:
        print(f"parameters: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
