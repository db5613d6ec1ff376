"""A small model with random weights, and the page served with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtc_jax.app.limits import Limits
from dtc_jax.inference.pipeline import Pipeline
from tests.evaluation.models import save_test_model

LIMITS = Limits(max_upload_megabytes=1, max_megapixels=1, max_images=3, max_steps=4, max_undo=2)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(save_test_model(tmp_path_factory.mktemp("models") / "one"))


@pytest.fixture(scope="session")
def address(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra `app`)")
    from dtc_jax.app.command import free_port, serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        page = serve(pipeline, LIMITS, port=free_port("127.0.0.1", 0))
        yield f"http://127.0.0.1:{page.server_port}"
        page.close()
