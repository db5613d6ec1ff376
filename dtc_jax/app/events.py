"""What the buttons do, as plain functions of plain values: no part of Gradio is needed to call or to test them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, get_args

import cv2
import numpy as np
from jaxtyping import UInt8

from dtc_jax.app.history import Session, with_results, with_scene
from dtc_jax.app.limits import SEEDS, Limits, check_pixels, open_upload, whole
from dtc_jax.app.painting import Choices, Progress, paint
from dtc_jax.app.region import region_mask
from dtc_jax.data.images import InputError, read_scene
from dtc_jax.diffusion import SolverName
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import SamplingChoices, resolve_sampling

Editor: TypeAlias = Mapping[str, Any] | None
"""What a Gradio image editor holds: `background` and `layers`, RGBA arrays."""

SOLVERS: tuple[str, ...] = get_args(SolverName)

SHOWN_SIDE = 1600
"""Longest side, in pixels, of the images that are for looking at only."""


@dataclass(frozen=True)
class Server:
    """What every event needs: the model and the limits."""

    pipeline: Pipeline
    limits: Limits


@dataclass(frozen=True)
class View:
    """What the page shows of a request that is under way or done."""

    session: Session
    progress: Progress
    seed: int


def place(
    server: Server,
    session: Session,
    editor: Editor,
    reference_path: str | None,
    region_kind: str,
    box: str | None,
    mask_path: str | None,
    num_images: float,
    num_inference_steps: float,
    guidance_scale: float,
    solver: str,
    random_seed: bool,
    seed: float,
) -> Iterator[View]:
    """Paint the product into the scene of the editor.

    Args:
        server: see `Server`.
        session: the visitor's.
        editor: the scene and the paint over it.
        reference_path: the uploaded photo of the product.
        region_kind: see `region_mask`, and so on for the next two.
        box: see `region_mask`.
        mask_path: see `region_mask`.
        num_images: see `Choices`.
        num_inference_steps: see `SamplingChoices`, and so on for the next two.
        guidance_scale: see `SamplingChoices`.
        solver: see `SamplingChoices`.
        random_seed: take a new seed in place of `seed`.
        seed: see `Choices`.

    Yields:
        Views; the last one's session has the results.

    Raises:
        InputError: what is missing or wrong, in one line.
    """
    limits = server.limits
    scene = editor_scene(editor, limits)
    session = with_scene(session, scene)
    scene = session.scene if session.scene is not None else scene
    reference = open_upload(reference_path, "reference", limits)
    layers = editor["layers"] if editor else ()
    mask = region_mask(region_kind, layers, box, mask_path, (scene.shape[0], scene.shape[1]), limits)
    choices = _choices(num_images, num_inference_steps, guidance_scale, solver, _seed(None if random_seed else seed))
    for progress in paint(server.pipeline, scene, mask, reference, choices, limits):
        if progress.fraction == 1:
            session = with_results(session, progress.results)
        yield View(session, progress, choices.seed)


def generate(
    server: Server,
    scene_path: str | None,
    reference_path: str | None,
    mask_path: str | None,
    box: str | None,
    num_images: float,
    num_inference_steps: float | None,
    guidance_scale: float | None,
    solver: str | None,
    seed: float | None,
) -> Iterator[tuple[Progress, dict[str, Any]]]:
    """The same for programs: files in, images out, nothing kept.

    Args:
        server: see `Server`.
        scene_path: an uploaded photo.
        reference_path: an uploaded photo of the product.
        mask_path: an uploaded mask, white = fill; or None with `box`.
        box: "x0,y0,x1,y1" in pixels of the scene; or None or "" with a mask.
        num_images: see `Choices`.
        num_inference_steps: None takes the checkpoint's.
        guidance_scale: None takes the checkpoint's.
        solver: None takes the checkpoint's.
        seed: None takes a random one.

    Yields:
        Progress, and the settings that are in force, seed included.

    Raises:
        InputError: what is missing or wrong, in one line.
    """
    limits = server.limits
    scene = open_upload(scene_path, "scene", limits)
    reference = open_upload(reference_path, "reference", limits)
    if (mask_path is None) == (not box):
        raise InputError("mask and box: give one of the two")
    kind = "Box in pixels" if mask_path is None else "Mask image"
    mask = region_mask(kind, (), box, mask_path, (scene.shape[0], scene.shape[1]), limits)
    choices = _choices(num_images, num_inference_steps, guidance_scale, solver or None, _seed(seed))
    used = resolve_sampling(server.pipeline.config, choices.sampling)
    settings = {
        "seed": choices.seed,
        "num_inference_steps": used.num_inference_steps,
        "guidance_scale": used.guidance_scale,
        "solver": used.solver,
    }
    for progress in paint(server.pipeline, scene, mask, reference, choices, limits):
        yield progress, settings


def editor_scene(editor: Editor, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    """The scene in the editor, without the paint.

    Raises:
        InputError: there is none, or it is too large.
    """
    background = None if editor is None else editor["background"]
    if background is None:
        raise InputError("scene: is missing; upload a photo or choose an example")
    check_pixels((background.shape[1], background.shape[0]), "scene", limits)
    return read_scene(background)


def before_and_after(session: Session) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]] | None:
    """The scene and the chosen result, for looking at; None if there is no result."""
    if session.scene is None or not session.results:
        return None
    return for_display(session.scene), for_display(session.results[session.chosen])


def for_display(image: UInt8[np.ndarray, "h w 3"], side: int = SHOWN_SIDE) -> UInt8[np.ndarray, "dh dw 3"]:
    """The image, at most `side` pixels long."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _choices(num_images: object, steps: object, guidance_scale: object, solver: object, seed: int) -> Choices:
    """What a request chose; None is the checkpoint's. The rest is checked where the sampling is resolved."""
    if guidance_scale is not None and (isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float)):
        raise InputError(f"guidance: must be a number, not {guidance_scale!r}")
    if solver is not None and solver not in SOLVERS:
        raise InputError(f"solver: must be one of {', '.join(SOLVERS)}, not {solver!r}")
    return Choices(
        num_images=whole(num_images, "number of images"),
        sampling=SamplingChoices(
            num_inference_steps=None if steps is None else whole(steps, "steps"),
            guidance_scale=None if guidance_scale is None else float(guidance_scale),
            solver=cast(SolverName | None, solver),
        ),
        seed=seed,
    )


def _seed(seed: float | None) -> int:
    return secrets.randbelow(SEEDS) if seed is None else whole(seed, "seed")
