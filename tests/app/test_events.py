"""What the buttons do, without a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dtc_jax.app import events, examples, history
from dtc_jax.app.events import Server, View
from dtc_jax.app.examples import EXAMPLES, FOLDER, PRODUCTS, ROOMS, product_path, render_product, render_room, room_path
from dtc_jax.app.history import Session
from dtc_jax.app.limits import Limits, open_upload, whole
from dtc_jax.app.painting import Choices, paint
from dtc_jax.app.region import REGION_KINDS, parse_box, region_mask
from dtc_jax.data.images import InputError, read_reference, read_scene
from dtc_jax.inference import stages
from dtc_jax.inference.pipeline import Pipeline
from dtc_jax.inference.settings import SamplingChoices
from tests.app.conftest import LIMITS

SCENE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
LAYER = np.zeros((40, 56, 4), np.uint8)
LAYER[10:30, 12:40] = (230, 0, 126, 150)
LAYER[10:14, 12:16] = 0
EDITOR = {"background": np.dstack([SCENE, np.full((40, 56), 255, np.uint8)]), "layers": [LAYER], "composite": None}
BARE = {**EDITOR, "layers": []}


@pytest.fixture(name="server")
def _server(pipeline: Pipeline) -> Server:
    return Server(pipeline, LIMITS)


def place(server: Server, session: Session = Session(), **changed: Any) -> list[View]:  # noqa: B008 (immutable)
    arguments: dict[str, Any] = {
        "editor": EDITOR,
        "reference_path": str(product_path("vase")),
        "region_kind": REGION_KINDS[0],
        "box": None,
        "mask_path": None,
        "num_images": 2,
        "num_inference_steps": 1,
        "guidance_scale": 2.0,
        "solver": "ddim",
        "random_seed": False,
        "seed": 7,
        **changed,
    }
    return list(events.place(server, session, *arguments.values()))


def test_placing_is_the_pipeline(server: Server) -> None:
    views = place(server)
    expected = server.pipeline(
        SCENE,
        (LAYER[..., 3] > 0).astype(np.uint8),
        str(product_path("vase")),
        seed=7,
        num_images=2,
        num_inference_steps=1,
        guidance_scale=2.0,
    )
    results = views[-1].session.results
    assert len(results) == 2 and views[-1].seed == 7
    np.testing.assert_allclose(np.stack(results).astype(int), np.stack(expected), atol=1)
    assert not np.array_equal(*results)
    fractions = [view.progress.fraction for view in views]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert fractions.count(1) == 1
    outside = LAYER[..., 3] == 0
    np.testing.assert_array_equal(results[0][outside], SCENE[outside])


def test_previews_come_closer_and_closer(server: Server) -> None:
    views = place(server, num_images=1, num_inference_steps=4)
    assert [view.progress.fraction for view in views] == [0, 0.25, 0.5, 0.75, 1]
    result = views[-1].session.results[0].astype(int)
    inside = LAYER[..., 3] > 0
    far = []
    for view in views[1:-1]:
        assert view.progress.preview is not None and view.progress.results == ()
        np.testing.assert_array_equal(view.progress.preview[~inside], SCENE[~inside])
        far.append(np.abs(view.progress.preview - result)[inside].mean())
    assert far == sorted(far, reverse=True) and 0 < far[-1] < far[0]
    compiled = stages.advance._cache_size()
    place(server, num_images=1, num_inference_steps=3)
    assert stages.advance._cache_size() == compiled, "another number of steps is compiled anew"


def test_two_painted_places_get_a_product_each(server: Server) -> None:
    layer = np.zeros_like(LAYER)
    layer[5:25, 4:22], layer[5:25, 32:52] = 255, 255
    result = place(server, editor={**EDITOR, "layers": [layer]}, num_images=1)[-1].session.results[0]
    expected = server.pipeline(
        SCENE, layer[..., 3], str(product_path("vase")), seed=7, num_inference_steps=1, guidance_scale=2.0
    )[0]
    np.testing.assert_allclose(result.astype(int), expected, atol=1)


def test_random_seeds_differ_and_are_told(server: Server) -> None:
    first, second = (place(server, random_seed=True, num_images=1)[-1] for _ in range(2))
    assert first.seed != second.seed
    again = place(server, seed=first.seed, num_images=1)[-1]
    np.testing.assert_array_equal(again.session.results[0], first.session.results[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"editor": None}, "scene: is missing"),
        ({"editor": {"background": None, "layers": []}}, "scene: is missing"),
        ({"reference_path": None}, "reference: is missing"),
        ({"editor": {**EDITOR, "layers": []}}, "nothing is painted"),
        ({"editor": {**EDITOR, "layers": [LAYER[:20]]}}, "clear the paint"),
        ({"region_kind": "Box in pixels", "box": "1,2,3,4"}, "there is paint on the scene"),
        ({"region_kind": "Box in pixels", "box": "1,2,3", "editor": BARE}, "four whole numbers"),
        ({"region_kind": "Box in pixels", "box": "0,0,99,99", "editor": BARE}, "needs 0 <= x0"),
        ({"region_kind": "Mask image", "editor": BARE}, "mask: is missing"),
        ({"region_kind": "elsewhere"}, "must be one of"),
        ({"num_images": 4}, "number of images: must be from 1 to 3, not 4"),
        ({"num_images": 1.5}, "whole number"),
        ({"num_inference_steps": 5}, "steps: must be from 1 to 4"),
        ({"seed": -1}, "seed: must be from 0"),
        ({"seed": None}, None),
        ({"solver": "euler"}, "solver: must be one of ddim, dpmsolver"),
        ({"guidance_scale": "x"}, "guidance: must be a number"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(
    server: Server, changed: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert place(server, **changed)[-1].session.results
        return
    with pytest.raises(InputError, match=message) as caught:
        place(server, **changed)
    assert "\n" not in str(caught.value)


def test_results_become_scenes_and_scenes_come_back(server: Server) -> None:
    first = place(server)[-1].session
    with pytest.raises(InputError, match="no longer there"):
        history.choose(first, 2)
    second = history.use_result(history.choose(first, 1), LIMITS)
    np.testing.assert_array_equal(second.scene, first.results[1])
    assert second.results == () and len(second.earlier) == 1
    with pytest.raises(InputError, match="none yet"):
        history.use_result(second, LIMITS)

    # The browser hands the scene back: it is the same scene, a rounding of its canvas aside, and the history goes on.
    canvas = np.clip(second.scene.astype(int) + 1, 0, 255).astype(np.uint8)
    third = place(server, second, editor={**EDITOR, "background": canvas})[-1].session
    np.testing.assert_array_equal(third.scene, second.scene)
    assert len(third.earlier) == 1
    fourth = history.use_result(third, LIMITS)
    assert len(fourth.earlier) == 2
    back = history.undo(fourth)
    np.testing.assert_array_equal(back.scene, second.scene)
    start = history.undo(back)
    np.testing.assert_array_equal(start.scene, SCENE)
    with pytest.raises(InputError, match="no earlier scene"):
        history.undo(start)

    # Another photo starts anew.
    assert place(server, fourth)[-1].session.earlier == ()


def test_history_is_bounded() -> None:
    scenes = [np.full((1000, 1000, 3), value, np.uint8) for value in range(5)]
    session = Session(scene=scenes[0])
    for limits, kept in ((Limits(max_undo=3), [1, 2, 3]), (Limits(max_undo=3, max_kept_megabytes=6), [2, 3])):
        now = session
        for scene in scenes[1:]:
            now = history.use_result(history.with_results(now, [scene]), limits)
        assert [int(scene[0, 0, 0]) for scene in now.earlier] == kept
    tight = Limits(max_kept_megabytes=1)
    assert len(history.use_result(history.with_results(session, [scenes[1]]), tight).earlier) == 1


def test_regions(tmp_path: Path) -> None:
    size = (40, 56)
    exact = region_mask("Painted area", [LAYER], None, None, size, LIMITS)
    np.testing.assert_array_equal(exact, LAYER[..., 3] > 0)
    boxed = region_mask("Box around the paint", [LAYER], None, None, size, LIMITS)
    typed = region_mask("Box in pixels", [], " 12, 10 ,40;30", None, size, LIMITS)
    np.testing.assert_array_equal(boxed, typed)
    assert boxed.sum() == 20 * 28
    Image.fromarray(exact * np.uint8(255)).save(tmp_path / "mask.png")
    read = region_mask("Mask image", [], None, str(tmp_path / "mask.png"), size, LIMITS)
    np.testing.assert_array_equal(read, exact)
    with pytest.raises(InputError, match="it is 56x40 pixels but the scene is 40x56"):
        region_mask("Mask image", [], None, str(tmp_path / "mask.png"), (56, 40), LIMITS)
    for text in ("", None, "1,2,3,4,5", "a,b,c,d", "1,2,3,9999999999"):
        with pytest.raises(InputError, match="box"):
            parse_box(text)


def test_uploads_are_looked_at_before_they_are_decoded(tmp_path: Path) -> None:
    large, text, cut = tmp_path / "large.png", tmp_path / "text.png", tmp_path / "cut.png"
    Image.new("L", (1001, 1000)).save(large)
    text.write_text("no image")
    Image.fromarray(SCENE).save(cut)
    cut.write_bytes(cut.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"1001x1000 pixels are more than 1 megapixels"):
        open_upload(str(large), "scene", LIMITS)
    for path in (text, cut, tmp_path, tmp_path / "absent.png"):
        with pytest.raises(InputError) as caught:
            open_upload(str(path), "reference", LIMITS)
        assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)
    assert open_upload(str(product_path("mug")), "reference", LIMITS).shape == (160, 160, 3)


def test_large_results_and_long_requests_are_refused(server: Server) -> None:
    mask = (LAYER[..., 3] > 0).astype(np.uint8)
    product = read_reference(product_path("vase"))
    sampling = SamplingChoices(num_inference_steps=1, guidance_scale=2.0)
    choices = Choices(num_images=3, sampling=sampling)
    times = iter([0.0, 5.0, 11.0])
    seen = []
    with pytest.raises(InputError, match="after the 10 seconds that a request may take, 67 % of it"):
        for progress in paint(
            server.pipeline, SCENE, mask, product, choices, replace(LIMITS, max_seconds=10), lambda: next(times)
        ):
            seen.append(progress)
    assert [len(progress.results) for progress in seen] == [0, 1]
    wide = np.zeros((1000, 1000, 3), np.uint8)
    with pytest.raises(InputError, match="3 of 1000x1000 pixels are more than 8 megabytes"):
        next(paint(server.pipeline, wide, wide[..., 0], product, choices, replace(LIMITS, max_kept_megabytes=8)))


def test_numbers() -> None:
    assert whole(3.0, "steps") == 3
    for value in (True, "3", None, 1.5, float("inf"), float("nan")):
        with pytest.raises(InputError, match="whole number"):
            whole(value, "steps")
    with pytest.raises(ValueError, match="max_images must be at least 1"):
        Limits(max_images=0)


def test_images_for_looking_at_are_small() -> None:
    assert events.for_display(np.zeros((3200, 400, 3), np.uint8)).shape == (1600, 200, 3)
    assert events.for_display(SCENE) is SCENE


def test_examples_are_complete_and_small() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {room_path(name).name for name in ROOMS} | {product_path(name).name for name in PRODUCTS}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 400_000
    for example in EXAMPLES:
        x0, y0, x1, y1 = example.box
        mask = example.mask()
        assert mask[y0:y1, x0:x1].mean() > 0.4 and mask.sum() == mask[y0:y1, x0:x1].sum()


@pytest.mark.slow
def test_examples_are_what_the_code_renders() -> None:
    room, number = next(iter(ROOMS.items()))
    difference = np.abs(read_scene(room_path(room)).astype(int) - np.asarray(render_room(np.uint32(number))))
    assert difference.mean() < 1
    product, number = next(iter(PRODUCTS.items()))
    difference = np.abs(read_scene(product_path(product)).astype(int) - np.asarray(render_product(np.uint32(number))))
    assert difference.mean() < 1


def test_examples_are_written_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        examples.main(["--help"])
    assert ended.value.code == 0
    (tmp_path / "file").touch()
    assert examples.main(["--folder", str(tmp_path / "file" / "folder")]) == 2
    assert "cannot be made" in capsys.readouterr().err
