"""Paint a product into a masked region of a scene; `python sample.py --help` explains."""

import sys

from dtc_jax.inference.command import main

if __name__ == "__main__":
    sys.exit(main())
