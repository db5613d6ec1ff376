"""Prepared data sets with outputs of frozen networks: how they are laid out, and which experiments they fit.

A *cache* is a prepared data set (`dtc_jax.data.records`) whose training split holds V *variants* of every record: as
the first V epochs of training on the original would see it. Of `count` records, entry `variant * count + number` is
what that epoch has in the slot of record `number`, with

    the features of every record    its own bytes, not augmented
    augmentation   float64 [3]      what was drawn for it: box, flip, angle in degrees
    tokens                          the reference encoder's output [l, hidden]
    latent_mean, latent_logvar, masked_latents   the autoencoder's [h, w, c]

of the last two what was asked for. The evaluation split has one variant, without augmentation. Pixels are augmented
again when an entry is read, so that a batch is the one that the networks saw, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtc_jax.config_base import ConfigError
from dtc_jax.data.order import Augmentation
from dtc_jax.data.records import DataSet, features, import_tfds
from dtc_jax.data_config import DataConfig
from dtc_jax.model_config import ModelConfig

LAYOUT = 1
"""Version of the layout above."""

CACHED: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens",),
    "latents": ("latent_mean", "latent_logvar", "masked_latents"),
}
"""What a batch holds for each entry of `data.cached`."""

AUGMENTATION = "augmentation"

REFERENCE_TOKENS = "model.reference.tokens"
_EARLIER = {REFERENCE_TOKENS: "all"}
"""Settings that caches made before there was a choice do not name."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a cache's metadata says of it."""

    variants: Mapping[str, int]
    """Variants of each record, by split."""
    cached: tuple[str, ...]
    """Keys of `CACHED`."""
    dtype: str
    """Type in which the arrays are stored."""
    made_with: Mapping[str, Any]
    """What `settings` returned for the experiment that it was made for."""
    networks: Mapping[str, str]
    """Fingerprints of the networks whose outputs it holds (`dtc_jax.weights.fingerprint`)."""
    compute_dtype: str
    """`training.compute_dtype` of what computed them."""
    frozen_dtype: str
    """`training.frozen_dtype` of the same."""
    source: Mapping[str, Any]
    """Name, version and records of the data set that it was made from."""
    layout: int = LAYOUT


def cache_of(data_set: DataSet) -> Cache | None:
    """What makes a data set a cache; None if it is none.

    Raises:
        ConfigError: one that this package cannot read.
    """
    described = data_set.metadata.get("cache")
    if described is None:
        return None
    try:
        cache = Cache(**{**described, "cached": tuple(described["cached"])})
    except (KeyError, TypeError):
        raise ConfigError(f"data set {data_set.folder}: its cache's metadata cannot be read; cache again") from None
    if cache.layout != LAYOUT:
        raise ConfigError(
            f"data set {data_set.folder}: its cache has layout {cache.layout}, this package reads {LAYOUT}; cache again"
        )
    return cache


def array_shapes(model: ModelConfig, cached: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of one sample's arrays for the given entries of `data.cached`."""
    encoder, size = model.reference_encoder, model.image_size // model.vae.factor
    latents = (size, size, model.vae.latent_channels)
    shapes = {"tokens": (model.num_reference_tokens, encoder.hidden_size)} | dict.fromkeys(CACHED["latents"], latents)
    return {name: shapes[name] for kind in cached for name in CACHED[kind]}


def cache_features(size: int, shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Any:
    """The TFDS features of a cache: those of every prepared data set, and raw bytes of arrays."""
    kinds = import_tfds().features
    arrays = {AUGMENTATION: kinds.Tensor(shape=(3,), dtype=np.float64, encoding="bytes")} | {
        name: kinds.Tensor(shape=shape, dtype=dtype, encoding="bytes") for name, shape in shapes.items()
    }
    return kinds.FeaturesDict({**features(size), **arrays})


def pack_augmentation(augmentation: Augmentation) -> np.ndarray:
    """For the feature `augmentation`."""
    return np.array(augmentation, np.float64)


def stored_augmentation(record: Mapping[str, Any]) -> Augmentation | None:
    """What an entry was augmented with; None for a record of any other data set."""
    if AUGMENTATION not in record:
        return None
    box, flip, angle = record[AUGMENTATION]
    return Augmentation(bool(box), bool(flip), float(angle))


# ------------------------------------------------------------------------------------------- which experiments it fits


def settings(data: DataConfig, model: ModelConfig, cached: Sequence[str]) -> dict[str, Any]:
    """The fields of an experiment that decide which samples there are and what the frozen networks make of them.

    Flat, by the names of their flags; values are JSON's.
    """
    names = ("seed", "split", "box_probability", "flip_probability", "rotation_degrees")
    fields: dict[str, Any] = {f"data.{name}": getattr(data, name) for name in names}
    fields["model.image_size"] = model.image_size
    if "tokens" in cached:
        # The margin is trimmed before the reference is framed for its encoder, too.
        fields["model.hint.trim"] = model.hint.trim
        fields[REFERENCE_TOKENS] = model.reference.tokens
        fields |= _flat("model.reference_encoder", dataclasses.asdict(model.reference_encoder))
    if "latents" in cached:
        fields |= _flat("model.vae", {"kind": type(model.vae).__name__, **dataclasses.asdict(model.vae)})
    return json.loads(json.dumps(fields))


def _flat(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{field}": value for field, value in values.items()}


def check_fits(data_set: DataSet, data: DataConfig, model: ModelConfig) -> Cache | None:
    """The data set's cache, if it is one that the experiment can train on.

    Raises:
        ConfigError: the experiment needs arrays that are not there, or draws other samples or has other networks than
            those that the cache was made for.
    """
    cache = cache_of(data_set)
    made = () if cache is None else cache.cached
    for kind in data.cached:
        if kind not in made:
            raise ConfigError(
                f"data set {data_set.folder}: holds no cached {kind}; make one that does (python -m "
                f"dtc_jax.training.cache), or leave {kind} out of data.cached"
            )
    if cache is None:
        return None
    for name, now in settings(data, model, data.cached).items():
        before = cache.made_with.get(name, _EARLIER.get(name))
        if before != now:
            raise ConfigError(
                f"data set {data_set.folder}: is a cache made with {name} = {before}, not {now}; "
                "train with the same, or cache again"
            )
    return cache
