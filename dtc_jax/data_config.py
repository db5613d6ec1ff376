"""Where the training samples come from, and how a record becomes a sample."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from dtc_jax.config_base import STRICT, require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the training samples come from, and how a record becomes one."""

    __pydantic_config__ = STRICT

    kind: Literal["procedural", "records", "product"] = "procedural"
    """`procedural`: the generated virtual try-all world (no files); `records`: a data set that
    `python -m dtc_jax.data.build` prepared; `product`: a few photos of one product, for a model with a prompt."""
    seed: int = 0
    """Seed of the data set: of the generated world, or of the order of the records or photos, their augmentation and
    their masks."""
    product: str | None = None
    """Folder with three to five photos of the product. This and what follows, down to num_class_images: `product`
    alone."""
    product_fit: Literal["pad", "crop"] = "pad"
    """How a photo becomes a square: padded with white (a crop would cut products), or cut at its centre."""
    prompt: str = "a photo of sks product"
    """What stands for the product: a rare word (DreamBooth's `sks`) before the word for its class."""
    class_prompt: str = "a photo of a product"
    """What stands for any product of the class: the same without the rare word."""
    class_images: str | None = None
    """Folder with pictures of other products of the class; None lets the model that training starts from paint
    num_class_images of them into RUN/class_images."""
    num_class_images: int = 200
    """Pictures that are painted for the class."""
    path: str | None = None
    """Folder of the prepared data set, local or on a bucket (gs://, s3://). This and what follows: `records` alone."""
    split: str = "train"
    """Split to train on."""
    evaluation_split: str = "test"
    """Split that sample grids and evaluation while training draw from."""
    box_probability: float = 0.5
    """Share of samples whose mask is the fine mask's bounding box (paper 5.1: half); of a product's photos, a rectangle
    and not an ellipse."""
    flip_probability: float = 0.5
    """Share of samples that are mirrored: scene, mask and reference together. Mirroring one alone would teach the model
    to mirror text."""
    rotation_degrees: float = 10.0
    """References are turned by a uniform angle of at most this to either side, on white; 0 leaves them."""
    workers: int = 0
    """Processes that prepare samples; 0 prepares them in threads of the training process, which serves a few cores."""
    threads: int = 8
    """Threads that prepare samples: in each worker, or in the training process without workers."""
    prefetch: int = 2
    """Batches that are on the devices ahead of the step that is running."""
    max_broken: float = 0.01
    """Broken records are replaced and named in RUN/broken_records.jsonl; past this share of samples the run stops."""
    cached: tuple[Literal["tokens", "latents"], ...] = ()
    """What the batches bring with them, computed before: the reference encoder's `tokens`, and the autoencoder's
    `latents`. The networks that would compute it are not run, and where nothing else needs them not loaded."""

    def __post_init__(self) -> None:
        require(
            self.kind != "records" or bool(self.path),
            "data.kind = records needs data.path, the folder of a prepared data set (see python -m dtc_jax.data.build)",
        )
        require(0 <= self.seed < 2**32, f"data.seed = {self.seed} must be in [0, 2**32)")
        require(
            self.kind != "product" or bool(set(self.prompt.split()) - set(self.class_prompt.split())),
            f"data.prompt = {self.prompt!r} has no word that data.class_prompt = {self.class_prompt!r} lacks; put a "
            "rare one before the class, as in 'a photo of sks shirt'",
        )
        count = self.num_class_images
        require(count >= 1, f"data.num_class_images = {count} must be at least 1; loss.prior_weight = 0 needs none")
        for name in ("box_probability", "flip_probability", "max_broken"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data.{name} = {value} must be between 0 and 1")
        degrees = self.rotation_degrees
        require(0 <= degrees <= 45, f"data.rotation_degrees = {degrees} must be between 0 and 45")
        require(self.workers >= 0, f"data.workers = {self.workers} must be 0 (threads) or more")
        require(self.threads >= 1, f"data.threads = {self.threads} must be at least 1")
        require(self.prefetch >= 1, f"data.prefetch = {self.prefetch} must be at least 1")

    def draws_same_as(self, other: DataConfig) -> bool:
        """Whether the same data set gives the same training samples: where it lies and how it is read do not matter."""
        how = ("path", "evaluation_split", "workers", "threads", "prefetch", "max_broken", "product", "class_images")
        names = [field.name for field in dataclasses.fields(self) if field.name not in how]
        return all(getattr(self, name) == getattr(other, name) for name in names)
