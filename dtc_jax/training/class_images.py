"""Pictures of a product's class, painted by the model that training starts from (DreamBooth's prior preservation).

Before the first step of a run, into RUN/class_images: the whole picture is masked, so that an inpainting model paints
it from the class prompt alone. Picture i is a function of the data's seed and i, and each file is written beside its
place and renamed: work that was cut off goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from tqdm import tqdm

from dtc_jax.config import ConfigError, ExperimentConfig, load_config
from dtc_jax.data.images import InputError, write_image
from dtc_jax.data.product import ProductPhotos
from dtc_jax.inference.batches import choose_batch, generate_on, replicate
from dtc_jax.inference.generate import image_keys
from dtc_jax.inference.settings import sampler_settings
from dtc_jax.training.files import write_text
from dtc_jax.training.initial import initial_params
from dtc_jax.training.product_source import check_halves
from dtc_jax.weights.prompts import TOKENIZER, find_tokenizer

logger = logging.getLogger("dtc_jax.train")

CLASS_IMAGES = "class_images"
"""Folder of a run."""

_MADE_WITH = "made_with.json"
_KEPT = ("unet", "vae", "prompts", "null_tokens")


def prepare_product(
    config: ExperimentConfig,
    run_dir: Path,
    init_from: Sequence[Path] = (),
    devices: Sequence[jax.Device] | None = None,
) -> ExperimentConfig:
    """What a run on photos of one product needs before its data can be read; other runs are as they are.

    Args:
        config: The experiment.
        run_dir: Run folder; gets the tokenizer that the prompts are read with, and the pictures of the class.
        init_from: What training starts from.
        devices: This process's devices that may paint; None takes all.

    Returns:
        The experiment with `data.class_images`, if it needs any.

    Raises:
        ConfigError: photos that are missing, a folder that cannot paint, or pictures that cannot be written or that
            were painted for another experiment.
    """
    if config.data.kind != "product":
        return config
    # What is wrong with them is said before minutes of painting.
    check_halves(config)
    ProductPhotos(config.data, config.model.image_size, prior=False)
    own = config.data.class_images is None and config.loss.prior_weight > 0
    folder = run_dir / CLASS_IMAGES
    try:
        if jax.process_index() == 0:
            # A run that has a checkpoint needs no folder to start from any more.
            if not any(path.name.isdigit() for path in run_dir.glob("checkpoints/*")):
                _keep_tokenizer(config, run_dir, init_from)
            if own and not _is_of_other_data(config, run_dir):
                paint_class_images(config, folder, init_from, devices)
    except (OSError, InputError) as error:
        raise ConfigError(f"{folder}: cannot be written ({error})") from None
    multihost_utils.sync_global_devices("pictures of the class painted")
    if not own:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, class_images=str(folder)))


def _is_of_other_data(config: ExperimentConfig, run_dir: Path) -> bool:
    """Whether the run was started with other data, which is going to be refused: its pictures must stay as they are."""
    path = run_dir / "config.json"
    return path.is_file() and not load_config(path).data.draws_same_as(config.data)


def _keep_tokenizer(config: ExperimentConfig, run_dir: Path, init_from: Sequence[Path]) -> None:
    folder = run_dir / TOKENIZER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in find_tokenizer(config.model, init_from).files.items():
        write_text(folder / name, text)


def paint_class_images(
    config: ExperimentConfig,
    folder: Path,
    init_from: Sequence[Path],
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Paint those of `data.num_class_images` pictures that are not there yet, with a bar on a terminal.

    Raises:
        ConfigError: the folder's pictures were painted with other settings; see also `initial_params`.
        InputError, OSError: a picture cannot be written.
    """
    count = config.data.num_class_images
    digits = max(4, len(str(count - 1)))
    paths = [folder / f"{index:0{digits}d}.png" for index in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    _check_made_with(config, folder, begun=len(missing) < count)
    if not missing:
        return
    batch_size, working = choose_batch(len(missing), None, devices or jax.local_devices())
    key = jax.random.fold_in(jax.random.key(config.training.seed), 0)
    params = initial_params(config, key, init_from)
    logger.info("%s: painting %d pictures of %r", folder, len(missing), config.data.class_prompt)
    placed = replicate({name: params[name] for name in _KEPT}, working)
    batch = whole_picture(config, params["prompts"]["class"], batch_size)
    settings = sampler_settings(config, dtype=jnp.dtype(config.training.compute_dtype))
    scale = jnp.float32(config.sampling.guidance_scale)
    del params
    with tqdm(total=count, initial=count - len(missing), unit="picture", disable=None) as bar:
        for start in range(0, len(missing), batch_size):
            indices = missing[start : start + batch_size]
            filled = indices + indices[-1:] * (batch_size - len(indices))
            keys = jnp.concatenate([image_keys(config.data.seed, 1, first=index) for index in filled])
            images = np.asarray(generate_on(placed, batch, keys, scale, settings, working))
            for index, image in zip(indices, images, strict=False):
                write_image(paths[index], np.round(image * 255).astype(np.uint8))
                bar.update()


def whole_picture(config: ExperimentConfig, tokens: PyTree, count: int) -> dict[str, np.ndarray]:
    """A batch of `count` scenes that are masked all over, to be painted from these tokens [1, l, d] alone."""
    size = config.model.image_size
    return {
        "scene": np.full((count, size, size, 3), 128, np.uint8),
        "mask": np.ones((count, size, size, 1), np.uint8),
        "tokens": np.repeat(np.asarray(tokens), count, axis=0),
    }


def _check_made_with(config: ExperimentConfig, folder: Path, begun: bool) -> None:
    """Write down what decides the pictures, or compare with what was written down, if there are any.

    Raises:
        ConfigError: it differs.
    """
    sampling = json.loads(json.dumps(dataclasses.asdict(config.sampling)))
    del sampling["box_outline"]  # of which a picture without a reference has none
    now: dict[str, Any] = {
        "class_prompt": config.data.class_prompt,
        "seed": config.data.seed,
        "image_size": config.model.image_size,
        "sampling": sampling,
    }
    path = folder / _MADE_WITH
    if not (begun and path.is_file()):
        write_text(path, json.dumps(now, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        before = None
    if before != now:
        raise ConfigError(
            f"{folder}: holds pictures that were painted with another class_prompt, seed, image_size or sampling; "
            "remove the folder, or use another --run-dir"
        )
