"""One short file per experiment, each exposing CONFIG: a difference from a preset, not a copy."""
