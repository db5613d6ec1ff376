"""`python -m dtc_jax.bench COMMAND`: what a machine makes of the work that there is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "data": "samples per second and CPU core, and memory, of the input pipeline",
    "sample": "seconds per image, memory and compile time of the sampler, beside PyTorch's",
    "train": "images per second and utilisation of the train step, beside PyTorch's",
}
"""What can be measured: each is a module of this package with `main(argv) -> exit code`."""


def main(argv: Sequence[str]) -> int:
    """Run a measurement; returns the exit code."""
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"dtc_jax.bench.{argv[0]}").main(argv[1:])
    lines = ["usage: python -m dtc_jax.bench COMMAND [--FLAG VALUE ...]", ""]
    lines += [f"  {name:8} {text}" for name, text in COMMANDS.items()]
    if argv and argv[0] not in ("-h", "--help"):
        print(f"dtc_jax.bench: no measurement {argv[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0 if argv else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
