"""`python -m dtc_jax.app`."""

import sys

from dtc_jax.app.command import main

if __name__ == "__main__":
    sys.exit(main())
