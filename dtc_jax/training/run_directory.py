"""The run folder's identity: it belongs to one experiment, which its config.json describes."""

from __future__ import annotations

from pathlib import Path

from dtc_jax.config import ConfigError, ExperimentConfig, config_to_json, load_config
from dtc_jax.training.files import write_text
from dtc_jax.training.position import data_identity


def prepare_run_dir(config: ExperimentConfig, run_dir: Path, write: bool) -> None:
    """Create the run folder with its config.json, or check that the one there describes the same networks and data.

    Raises:
        ConfigError: the folder belongs to another experiment.
    """
    path = run_dir / "config.json"
    if path.exists():
        earlier = load_config(path)
        for part in ("stage", "model", "diffusion"):
            if getattr(earlier, part) != getattr(config, part):
                raise ConfigError(
                    f"{run_dir}: was started with another `{part}`; use another --run-dir, or --init-from it"
                )
        if data_identity(earlier) != data_identity(config):
            raise ConfigError(f"{run_dir}: was started with other `data`; use another --run-dir, or --init-from it")
        # These decide which numbers each step draws, or what the checkpoint holds.
        for name in ("seed", "batch_size", "trainable"):
            before, now = getattr(earlier.training, name), getattr(config.training, name)
            if before != now:
                raise ConfigError(
                    f"{run_dir}: was started with training.{name} = {before}, not {now}; use another --run-dir"
                )
        if earlier.ema.enabled != config.ema.enabled:
            raise ConfigError(
                f"{run_dir}: was started with ema.enabled = {earlier.ema.enabled}, not {config.ema.enabled}; "
                "use another --run-dir"
            )
    if write:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(path, config_to_json(config))
        except OSError as error:
            raise ConfigError(f"{run_dir}: cannot be written ({error.strerror}); use another --run-dir") from None
