"""Which parameters are trained."""

from __future__ import annotations

import pytest

from dtc_jax import presets
from dtc_jax.config import ConfigError, TrainingConfig
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.training.params import split_trainable
from dtc_jax.weights.model_folder import flatten_params


def test_every_tensor_is_on_one_side() -> None:
    flat = {"unet/conv_in/kernel": 1, "vae/conv_in/kernel": 2, "unet/conv_in/bias": 3}
    trainable, frozen = split_trainable(flat, "^unet/.*kernel$")
    assert trainable == {"unet/conv_in/kernel": 1}
    assert frozen == {"vae/conv_in/kernel": 2, "unet/conv_in/bias": 3}


def test_default_freezes_what_the_paper_freezes() -> None:
    """Autoencoder, reference encoder and VGG (figure 2 of the paper)."""
    flat = flatten_params(DiffuseToChoose(presets.test()).shapes())
    trainable, frozen = split_trainable(flat, TrainingConfig().trainable)
    assert {path.split("/")[0] for path in trainable} == {
        "unet",
        "hint_encoder",
        "hint_adapter",
        "fusion",
        "reference_projection",
        "null_tokens",
    }
    assert {path.split("/")[0] for path in frozen} == {"vae", "reference_encoder", "vgg"}
    assert len(trainable) + len(frozen) == len(flat)


def test_no_match() -> None:
    with pytest.raises(ConfigError, match=r"training.trainable: '\^unte/' matches no parameter of unet, vae"):
        split_trainable({"unet/a": 1, "vae/b": 2}, "^unte/")


def test_not_a_regular_expression() -> None:
    with pytest.raises(ConfigError, match=r"training.trainable: '\(' is not a regular expression"):
        split_trainable({"unet/a": 1}, "(")
