"""The endpoint, called as a program would call it; and what must not be called."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from dtc_jax.app.examples import product_path, room_path
from dtc_jax.data.images import read_scene
from dtc_jax.inference.pipeline import Pipeline

gradio_client = pytest.importorskip("gradio_client", reason="Gradio is not installed (the extra `app`)")
handle_file = gradio_client.handle_file

ROOT = Path(__file__).resolve().parents[2]
SCENE, PRODUCT, BOX = room_path("hall"), product_path("poster"), (134, 34, 182, 106)


@pytest.fixture(name="client", scope="module")
def _client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def call(client: Any, **changed: Any) -> Any:
    arguments = {
        "scene": handle_file(str(SCENE)),
        "reference": handle_file(str(PRODUCT)),
        "box": ",".join(str(number) for number in BOX),
        "num_inference_steps": 1,
        "guidance_scale": 2.0,
        **changed,
    }
    return client.predict(**arguments, api_name="/generate")


def test_the_endpoint_is_the_pipeline(client: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    images, settings = call(client, num_images=2, seed=3)
    assert settings == {"seed": 3, "num_inference_steps": 1, "guidance_scale": 2.0, "solver": "ddim"}
    expected = pipeline(
        str(SCENE), None, str(PRODUCT), box=BOX, seed=3, num_images=2, num_inference_steps=1, guidance_scale=2.0
    )
    found = np.stack([read_scene(image["image"]) for image in images])
    np.testing.assert_allclose(found.astype(int), np.stack(expected), atol=1)

    mask = np.zeros((192, 256), np.uint8)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    by_mask, _ = call(client, box=None, mask=handle_file(str(path)), seed=3)
    np.testing.assert_array_equal(read_scene(by_mask[0]["image"]), found[0])


def test_a_seed_that_is_not_given_is_told(client: Any) -> None:
    (image,), settings = call(client)
    (again,), _ = call(client, seed=settings["seed"])
    np.testing.assert_array_equal(read_scene(image["image"]), read_scene(again["image"]))


META = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "scene",
    [
        "/etc/passwd",
        str(SCENE),
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", **META},
        {"path": "../../etc/passwd", **META},
        {"path": "file:///etc/passwd", **META},
        {"path": "http://127.0.0.1:9/scene.png", **META},
        {"path": "http://127.0.0.1:9/scene.png", "url": "http://127.0.0.1:9/scene.png", **META},
        {"path": "x.png", "url": "data:image/png;base64,iVBORw0KGgo=", **META},
        {"url": "http://127.0.0.1:9/scene.png"},
        17,
        [["/etc/passwd"]],
    ],
)
def test_no_path_or_address_of_a_request_is_read(address: str, scene: Any) -> None:
    """As JSON, so that no client uploads or refuses anything."""
    uploaded = httpx.post(
        f"{address}/gradio_api/upload", files={"files": ("p.png", PRODUCT.read_bytes(), "image/png")}
    ).json()[0]
    product = {"path": uploaded, **META}
    data = [scene, product, None, "1,1,9,9", 1, 1, 2.0, None, 0]
    event = httpx.post(f"{address}/gradio_api/call/generate", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{address}/gradio_api/call/generate/{event}", timeout=60).text
    assert "event: error" in answer and "event: complete" not in answer
    assert "files must be uploaded" in answer
    assert "root:" not in answer and "Traceback" not in answer and "/etc" not in answer


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "pyproject.toml"), str(SCENE), "pyproject.toml"])
def test_no_file_of_the_server_is_served(address: str, path: str) -> None:
    answer = httpx.get(f"{address}/gradio_api/file={path}")
    assert answer.status_code in (403, 404) and answer.json().keys() == {"detail"}


def test_errors_are_one_line(client: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for changed, message in (
        ({"reference": handle_file(str(text))}, "not an image"),
        ({"box": "1,2,3"}, "four whole numbers"),
        ({"box": None}, "mask and box: give one of the two"),
        ({"num_images": 9}, "number of images: must be from 1 to 3"),
        ({"num_inference_steps": 5}, "steps: must be from 1 to 4"),
        ({"solver": "euler"}, "solver: must be one of"),
        ({"seed": 0.5}, "seed: must be a whole number"),
    ):
        with pytest.raises(Exception, match=re.escape(message)) as caught:
            call(client, **changed)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_large_files_and_requests_are_refused(address: str) -> None:
    large = np.random.default_rng(0).bytes(1_500_000)
    answer = httpx.post(f"{address}/gradio_api/upload", files={"files": ("x.png", large, "image/png")})
    assert answer.status_code == 413
    answer = httpx.post(f"{address}/gradio_api/call/generate", content=b"[" + b" " * 3_000_000 + b"]")
    assert answer.status_code == 413 and "send smaller files" in answer.text


def test_only_the_endpoint_is_public(client: Any) -> None:
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {"/generate"}


def test_the_page_of_the_documentation_works(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "app.md").read_text()
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "gradio_client" in block]
    shutil.copy(SCENE, tmp_path / "room.png")
    shutil.copy(PRODUCT, tmp_path / "poster.png")
    monkeypatch.chdir(tmp_path)
    assert "http://127.0.0.1:7860" in snippet and "num_inference_steps=20" in snippet
    names: dict[str, Any] = {}
    snippet = snippet.replace("http://127.0.0.1:7860", address).replace(
        "num_inference_steps=20", "num_inference_steps=1"
    )
    exec(snippet, names)
    assert read_scene(names["images"][0]["image"]).shape == (192, 256, 3) and names["settings"]["seed"] == 1
