"""What a configuration refuses, in one line that names the field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dtc_jax.config import (
    ConfigError,
    DiffusionConfig,
    ExperimentConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
    config_from_json,
    config_to_json,
)
from dtc_jax.training import command

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (OptimizerConfig, {"learning_rate": (0.0, -1e-5, NAN)}),
        (OptimizerConfig, {"b1": (1.0, 1.5, -0.1, NAN)}),
        (OptimizerConfig, {"b2": (1.0, 1.5, -0.1, NAN)}),
        (OptimizerConfig, {"weight_decay": (-0.01, NAN)}),
        (OptimizerConfig, {"max_grad_norm": (0.0, -1.0, NAN, INF)}),
        (DiffusionConfig, {"num_train_timesteps": (0, -1)}),
        (DiffusionConfig, {"beta_start": (0.0, -0.1, 0.5, NAN)}),
        (DiffusionConfig, {"beta_end": (0.0, -0.1, 1.0, NAN, INF)}),
        (TrainingConfig, {"seed": (-1, 2**32, 2**63, 2**64)}),
        (LossConfig, {"absolute_weight": (-0.1, NAN)}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_values_out_of_range(section: type[Any], values: dict[str, tuple[Any, ...]]) -> None:
    ((field, refused),) = values.items()
    for value in refused:
        with pytest.raises(ConfigError, match=rf"\.{field} = {value}") as error:
            section(**{field: value})
        assert "\n" not in str(error.value)


def test_values_at_the_ends_of_the_ranges() -> None:
    OptimizerConfig(b1=0.0, b2=0.0, weight_decay=0.0, max_grad_norm=None)
    OptimizerConfig(b1=0.9999, max_grad_norm=1e-6)
    DiffusionConfig(num_train_timesteps=1, beta_start=0.1, beta_end=0.1)
    # The cosine schedule does not read its betas.
    DiffusionConfig(beta_schedule="cosine", beta_start=0.5, beta_end=0.1)
    TrainingConfig(seed=2**32 - 1)


def float_fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from float_fields(value, (*path, field.name))
        elif "float" in str(field.type) and "tuple" not in str(field.type) and "Literal" not in str(field.type):
            yield (*path, field.name)


def replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    first, *rest = path
    return dataclasses.replace(
        config, **{first: replaced(getattr(config, first), tuple(rest), value) if rest else value}
    )


FLOATS = list(float_fields(ExperimentConfig()))


def test_the_floats_are_found() -> None:
    known = {("optimizer", "max_grad_norm"), ("model", "vae", "scaling_factor"), ("loss", "min_snr_gamma")}
    assert known <= set(FLOATS) and len(FLOATS) > 25


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("path", FLOATS, ids=".".join)
def test_no_number_is_infinite(path: tuple[str, ...], value: float) -> None:
    with pytest.raises(ConfigError) as error:
        replaced(ExperimentConfig(), path, value)
    assert path[-1] in str(error.value) and "\n" not in str(error.value)


def test_a_range_may_have_no_upper_end() -> None:
    config = ExperimentConfig(sampling=SamplingConfig(guidance_interval=(0.28, INF)))
    assert config_from_json(config_to_json(config)) == config


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("training.seed", str(2**64), f"training.seed = {2**64} must be in [0, 2**32)"),
        ("optimizer.max-grad-norm", "0", "optimizer.max_grad_norm = 0.0 must be a finite number above 0, or None"),
        ("diffusion.num-train-timesteps", "0", "diffusion.num_train_timesteps = 0 must be at least 1"),
        ("model.vae.scaling-factor", "inf", "model.vae.scaling_factor = inf must be a finite number"),
    ],
)
def test_on_the_command_line(
    flag: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["test", "--run-dir", str(tmp_path / "run"), f"--{flag}", value], CONFIGS) == 2
    output = capsys.readouterr()
    assert output.out == "" and message in output.err and output.err.count("\n") == 1


def test_in_a_file() -> None:
    text = config_to_json(ExperimentConfig()).replace('"max_grad_norm": 1.0', '"max_grad_norm": NaN')
    with pytest.raises(ConfigError, match=r"config: optimizer: .*optimizer\.max_grad_norm = nan must be") as error:
        config_from_json(text)
    assert "\n" not in str(error.value)
