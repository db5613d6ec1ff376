"""Train Diffuse to Choose: `python train.py NAME --run-dir DIR`; `python train.py --help` lists the experiments."""

import sys
from pathlib import Path

from dtc_jax.training.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent / "configs"))
