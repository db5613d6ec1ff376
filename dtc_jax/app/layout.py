"""The page: what is where, and which event function each button calls."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from dtc_jax.app import events, history
from dtc_jax.app.events import Server
from dtc_jax.app.examples import EXAMPLES, PRODUCTS, ROOMS, Example, product_path, read_room, room_path
from dtc_jax.app.guard import GuardedBlocks, bound_editor, shown, shown_steps
from dtc_jax.app.history import Session
from dtc_jax.app.region import MASK_IMAGE, REGION_KINDS
from dtc_jax.app.style import EMPTY_RESULT, HEADER, PAINT, READY

TITLE = "Diffuse to Choose"
SESSION_SECONDS = 3600
"""How long a visitor's scene and results are kept, and files."""
_MODEL = "model"
"""Events of this group wait for each other: one at a time uses the model."""
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def build_page(server: Server) -> gr.Blocks:
    """The page and its endpoint `/generate`; `launch` it.

    Args:
        server: the model and the limits.
    """
    with GuardedBlocks(title=TITLE, analytics_enabled=False, delete_cache=(600, SESSION_SECONDS)) as page:
        page.limits = server.limits
        _page(server)
        _endpoint(server)
    return page


def _page(server: Server) -> None:
    session = gr.State(Session(), time_to_live=SESSION_SECONDS)
    sampling = server.pipeline.config.sampling
    limits = server.limits
    gr.HTML(HEADER)
    examples = _examples()
    with gr.Row(equal_height=False, elem_id="columns"):
        with gr.Column(scale=6, min_width=320):
            gr.Markdown("### 1 · Scene: paint over the place where the product goes")
            editor = gr.ImageEditor(
                value=_editor_value(read_room(EXAMPLES[0].room)),
                type="numpy",
                image_mode="RGBA",
                format="png",
                sources=("upload", "clipboard"),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=16, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
                eraser=gr.Eraser(default_size=16),
                buttons=["fullscreen"],
                show_label=False,
                height=420,
                elem_id="scene",
                placeholder="Drop a photo of the scene here, or click to choose one",
            )
            bound_editor(editor, limits)
            region_kind = gr.Radio(REGION_KINDS, value=MASK_IMAGE, label="What to fill", elem_id="region")
            box = gr.Textbox(
                label="Box in the scene's pixels: left, top, right, bottom",
                placeholder="40, 60, 200, 240",
                visible=False,
                max_length=64,
                elem_id="box",
            )
            mask = gr.Image(
                value=_mask_image(EXAMPLES[0]),
                label="Mask: white is filled",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                buttons=[],
                height=190,
                elem_id="mask",
            )
        with gr.Column(scale=4, min_width=320):
            gr.Markdown("### 2 · Product: one photo, best on white")
            reference = gr.Image(
                value=str(product_path(EXAMPLES[0].product)),
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                buttons=[],
                show_label=False,
                height=210,
                elem_id="reference",
                placeholder="Drop a photo of the product here",
            )
            with gr.Row():
                place = gr.Button("Place the product", variant="primary", size="lg", elem_id="place", scale=3)
                stop = gr.Button("Stop", size="lg", elem_id="stop", scale=1, min_width=80)
            with gr.Accordion("Options", open=False, elem_id="options"):
                num_images = gr.Slider(1, limits.max_images, value=1, step=1, label="Number of images")
                steps = gr.Slider(
                    1,
                    limits.max_steps,
                    value=min(sampling.num_inference_steps, limits.max_steps),
                    step=1,
                    label="Steps",
                    info="More take longer and are more exact",
                    elem_id="steps",
                )
                guidance = gr.Slider(
                    1,
                    10,
                    value=sampling.guidance_scale,
                    step=0.1,
                    label="Guidance",
                    info="How much the product's photo counts; 1 turns guidance off",
                )
                solver = gr.Radio(
                    events.SOLVERS, value=sampling.solver, label="Solver", info="dpmsolver++ needs fewer steps"
                )
                with gr.Row():
                    random_seed = gr.Checkbox(True, label="New seed each time", min_width=120)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120, elem_id="seed")
    gr.Markdown("### 3 · Result", elem_id="result")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            preview = gr.Image(
                format="jpeg",
                show_label=False,
                interactive=False,
                visible=False,
                buttons=[],
                height=400,
                elem_id="preview",
            )
            compare = gr.ImageSlider(
                format="png",
                show_label=False,
                interactive=False,
                visible=False,
                buttons=["fullscreen"],
                max_height=420,
                slider_position=25,
                elem_id="compare",
            )
            waiting = gr.HTML(EMPTY_RESULT, elem_id="waiting")
        with gr.Column(scale=4, min_width=320):
            status = gr.HTML(READY, elem_id="status")
            gallery = gr.Gallery(
                format="png",
                label="Results: click one to compare",
                columns=4,
                height=130,
                object_fit="contain",
                visible=False,
                allow_preview=False,
                interactive=False,
                buttons=["download_all"],
                fit_columns=False,
                elem_id="gallery",
            )
            with gr.Row():
                use = gr.Button("Use result as scene", interactive=False, elem_id="use", scale=3, min_width=180)
                undo = gr.Button("Undo", interactive=False, elem_id="undo", scale=1, min_width=90)
    rooms, products = _parts()

    outputs = [session, status, waiting, preview, compare, gallery, use, seed]

    @shown_steps
    def on_place(*inputs: Any) -> Iterator[list[Any]]:
        for view in events.place(server, *inputs):
            yield _show_view(view, inputs[-1])

    placing = place.click(
        # Gradio streams from generator functions alone, which one that a decorator has wrapped (on_place) may not be.
        lambda *inputs: (yield from on_place(*inputs)),
        [
            session,
            editor,
            reference,
            region_kind,
            box,
            mask,
            num_images,
            steps,
            guidance,
            solver,
            random_seed,
            seed,
        ],
        outputs,
        concurrency_id=_MODEL,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=[status],
        scroll_to_output=False,
        **_PRIVATE,
    )
    stop.click(
        lambda: [_status("Stopped.", None), gr.update(visible=True), gr.update(visible=False)],
        None,
        [status, waiting, preview],
        cancels=[placing],
        queue=False,
        show_progress="hidden",
        **_PRIVATE,
    )

    def on_select(current: Session, selected: gr.SelectData) -> list[Any]:
        new = shown(history.choose)(current, int(selected.index))
        return [new, gr.update(value=events.before_and_after(new))]

    gallery.select(on_select, [session], [session, compare], show_progress="hidden", **_PRIVATE)
    changed_scene = [session, editor, region_kind, status, waiting, preview, compare, gallery, use, undo]
    use.click(
        lambda current: _show_scene(shown(history.use_result)(current, limits), "The result is the scene now."),
        [session],
        changed_scene,
        show_progress="hidden",
        **_PRIVATE,
    )
    undo.click(
        lambda current: _show_scene(shown(history.undo)(current), "Back at the scene before."),
        [session],
        changed_scene,
        show_progress="hidden",
        **_PRIVATE,
    )
    region_kind.change(
        lambda kind: [gr.update(visible=kind == "Box in pixels"), gr.update(visible=kind == MASK_IMAGE)],
        [region_kind],
        [box, mask],
        queue=False,
        show_progress="hidden",
        **_PRIVATE,
    )
    examples.click(
        lambda index: _show_example(EXAMPLES[index]),
        [examples],
        [editor, reference, region_kind, mask],
        show_progress="hidden",
        **_PRIVATE,
    )
    rooms.click(
        lambda index: [_editor_value(read_room(list(ROOMS)[index])), REGION_KINDS[0]],
        [rooms],
        [editor, region_kind],
        show_progress="hidden",
        **_PRIVATE,
    )
    products.click(
        lambda index: str(product_path(list(PRODUCTS)[index])),
        [products],
        [reference],
        show_progress="hidden",
        **_PRIVATE,
    )


def _picture() -> gr.Image:
    return gr.Image(visible=False, type="filepath")


def _examples() -> gr.Dataset:
    return gr.Dataset(
        components=[_picture(), _picture()],
        headers=["Room", "Product"],
        samples=[[str(room_path(example.room)), str(product_path(example.product))] for example in EXAMPLES],
        type="index",
        label="Try one of these: a room, a product and a mask",
        elem_id="examples",
    )


def _parts() -> tuple[gr.Dataset, gr.Dataset]:
    gr.Markdown("### More to combine")
    with gr.Row():
        with gr.Column(min_width=300):
            rooms = gr.Dataset(
                components=[_picture()],
                samples=[[str(room_path(name))] for name in ROOMS],
                type="index",
                label="Empty rooms",
                elem_id="rooms",
            )
        with gr.Column(min_width=300):
            products = gr.Dataset(
                components=[_picture()],
                samples=[[str(product_path(name))] for name in PRODUCTS],
                type="index",
                label="Products",
                elem_id="products",
            )
    return rooms, products


def _endpoint(server: Server) -> None:
    """`/generate`, for programs: its inputs are on no page."""
    with gr.Column(visible=False):
        scene, reference, mask = (gr.Image(type="filepath", image_mode=None, label=name) for name in _FILES)
        box = gr.Textbox(label="box", max_length=64)
        num_images = gr.Number(1, label="num_images")
        steps = gr.Number(None, label="num_inference_steps")
        guidance = gr.Number(None, label="guidance_scale")
        api_solver = gr.Textbox(None, label="solver", max_length=32)
        seed = gr.Number(None, label="seed")
        images, used_settings = gr.Gallery(format="png", label="images"), gr.JSON(label="settings")
        button = gr.Button()

    @shown
    def generate(
        scene: Any,
        reference: Any,
        mask: Any = None,
        box: Any = None,
        num_images: Any = 1,
        num_inference_steps: Any = None,
        guidance_scale: Any = None,
        solver: Any = None,
        seed: Any = None,
        progress: Any = gr.Progress(),  # noqa: B008 (how Gradio knows that the function reports progress)
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Paint the reference's product into the scene, inside the mask or the box."""
        requested = (scene, reference, mask, box, num_images, num_inference_steps, guidance_scale, solver, seed)
        done: tuple[np.ndarray, ...] = ()
        used: dict[str, Any] = {}
        for current, settings in events.generate(server, *requested):
            progress(current.fraction, current.text)
            done, used = current.results, settings
        return list(done), used

    button.click(
        generate,
        [scene, reference, mask, box, num_images, steps, guidance, api_solver, seed],
        [images, used_settings],
        api_name="generate",
        concurrency_id=_MODEL,
        concurrency_limit=1,
    )


_FILES = ("scene", "reference", "mask")


def _show_view(view: events.View, old_seed: Any) -> list[Any]:
    """Updates of the outputs of `place`."""
    progress, session = view.progress, view.session
    if progress.fraction < 1:
        image = None if progress.preview is None else events.for_display(progress.preview)
        return [
            session,
            _status(f"Painting {progress.text} …", progress.fraction),
            gr.update(visible=image is None),
            gr.update(value=image, visible=image is not None),
            gr.update(visible=False),
            gr.update(visible=False),
            gr.update(interactive=False),
            gr.update(),
        ]
    return [
        session,
        _status(f"Done, with seed {view.seed}. Drag the line to compare before and after.", None),
        gr.update(visible=False),
        gr.update(visible=False),
        gr.update(value=events.before_and_after(session), visible=True),
        gr.update(value=list(session.results), visible=True),
        gr.update(interactive=True),
        view.seed,
    ]


def _show_scene(session: Session, text: str) -> list[Any]:
    """Updates after the scene was replaced by one of the session's."""
    assert session.scene is not None
    count = len(session.earlier)
    return [
        session,
        _editor_value(session.scene),
        REGION_KINDS[0],
        _status(f"{text} Paint the next place and choose the next product.", None),
        gr.update(visible=True),
        gr.update(visible=False),
        gr.update(visible=False, value=None),
        gr.update(visible=False, value=None),
        gr.update(interactive=False),
        gr.update(interactive=count > 0, value=f"Undo ({count})" if count else "Undo"),
    ]


def _status(text: str, fraction: float | None) -> str:
    bar = "" if fraction is None else f'<progress value="{fraction:.3f}" max="1"></progress>'
    return f"<div class='status'>{html.escape(text)}{bar}</div>"


def _show_example(example: Example) -> list[Any]:
    """Values of scene, product, kind of region and mask. Editors do not show layers that they did not paint."""
    scene = _editor_value(read_room(example.room))
    return [scene, str(product_path(example.product)), MASK_IMAGE, _mask_image(example)]


def _mask_image(example: Example) -> np.ndarray:
    return example.mask() * np.uint8(255)


def _editor_value(scene: np.ndarray) -> Any:
    """What an image editor shows of a scene without paint."""
    return {"background": scene, "layers": [], "composite": None}
