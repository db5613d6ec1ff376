"""Bring PyTorch weights in, take trained models back; `python convert_weights.py --help` explains."""

import sys

from dtc_jax.weights.command import main

if __name__ == "__main__":
    sys.exit(main())
