"""Measurements: `python -m dtc_jax.bench COMMAND --help`."""
