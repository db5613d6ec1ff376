"""`python -m dtc_jax.tables BUDGET`."""

import sys

from dtc_jax.tables.command import main

if __name__ == "__main__":
    sys.exit(main())
