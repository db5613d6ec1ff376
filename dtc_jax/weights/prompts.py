"""Prompts as the tokens that a U-Net attends to: encoded once, before training, and kept with the model.

A model of one product (DreamPaint) has three: the product's, its class's, and the empty one, with which guidance
compares. Its text encoder is frozen, so that they are constants; sampling needs neither it nor its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dtc_jax.config import CLIPTextConfig, ConfigError, DataConfig, ModelConfig
from dtc_jax.data.tokenizer import BYTE_VOCABULARY, Tokenizer, byte_files, read_files
from dtc_jax.models.diffuse_to_choose import DiffuseToChoose
from dtc_jax.weights.run_folder import split_step

TOKENIZER = "tokenizer"
"""Folder of a tokenizer's files in Stable Diffusion's, model and run folders."""


def find_tokenizer(model: ModelConfig, folders: Sequence[Path]) -> Tokenizer:
    """The tokenizer of the last of the folders that has one; of bytes alone for an encoder with so many entries.

    Args:
        model: Its `reference_encoder` is a text encoder.
        folders: Model or run folders.

    Raises:
        ConfigError: there is none, or one for another vocabulary.
    """
    encoder = model.reference_encoder
    assert isinstance(encoder, CLIPTextConfig)
    places = [split_step(folder)[0] / TOKENIZER for folder in folders]
    found = next((place for place in reversed(places) if place.is_dir()), None)
    if found is None and encoder.vocab_size != BYTE_VOCABULARY:
        raise ConfigError(
            f"{', '.join(map(str, folders)) or '--init-from'}: no text encoder with its tokenizer/ there; make a start "
            "that has them with convert_weights.py import --text-encoder"
        )
    tokenizer = Tokenizer(byte_files() if found is None else read_files(found), str(found))
    size = encoder.vocab_size
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"{found}: has {tokenizer.vocab_size} entries, model.reference_encoder.vocab_size = {size}: "
            "it belongs to another text encoder"
        )
    return tokenizer


def encode_prompts(
    model: ModelConfig, data: DataConfig, text_encoder: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The networks `prompts` and `null_tokens` of a model.

    Args:
        model: Its `reference_encoder` is a text encoder.
        data: Its prompts.
        text_encoder: Parameters of that.
        tokenizer: For it.

    Returns:
        Nested dict of float32 arrays on the host, each [1, l, d].

    Raises:
        ConfigError: a prompt that is too long.
    """
    length = model.num_reference_tokens
    ids = np.stack([tokenizer.encode(prompt, length) for prompt in (data.prompt, data.class_prompt, "")])
    network, params = DiffuseToChoose(model), {"reference_encoder": dict(text_encoder)}
    # One at a time would be three programs of a whole network each.
    tokens = np.asarray(jax.jit(network.encode_prompts)(params, ids), np.float32)
    product, class_prompt, empty = (tokens[index : index + 1] for index in range(3))
    return {"prompts": {"product": product, "class": class_prompt}, "null_tokens": {"embedding": empty}}
