"""Model folders: exact round trip, atomic replacement, and errors that name the tensor."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dtc_jax import presets
from dtc_jax.config import ExperimentConfig
from dtc_jax.weights import model_folder
from dtc_jax.weights.model_folder import (
    ModelFolderError,
    cast_params,
    check_params,
    flatten_params,
    load_model_folder,
    resolve_checkpoint,
    save_model_folder,
    unflatten_params,
)

CONFIG = ExperimentConfig(name="folder", model=presets.test())


def _params() -> dict:
    random = np.random.default_rng(0)
    return {
        "unet": {
            "conv_in": {"kernel": random.normal(size=(3, 3, 9, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
            "steps": np.arange(3, dtype=np.int32),
            "temperature": np.float32(0.07),
        },
        "null_tokens": random.normal(size=(1, 1, 8)).astype(np.float32),
    }


def _assert_equal(left: dict, right: dict) -> None:
    left, right = flatten_params(left), flatten_params(right)
    assert list(left) == list(right)
    for path, value in left.items():
        assert (value.dtype, value.shape) == (right[path].dtype, right[path].shape), path
        np.testing.assert_array_equal(value, right[path])


def test_round_trip_is_exact_and_a_bare_array_stays_bare(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "a" / "model", CONFIG, _params())
    config, params = load_model_folder(tmp_path / "a" / "model")
    assert config == CONFIG
    _assert_equal(params, _params())
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model"], "temporary folders were left behind"


def test_jax_arrays_and_bfloat16_survive(tmp_path: Path) -> None:
    params = {"unet": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3).T}}
    save_model_folder(tmp_path / "m", CONFIG, params)
    _, loaded = load_model_folder(tmp_path / "m")
    assert loaded["unet"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded["unet"]["kernel"].astype(np.float32), np.arange(6.0).reshape(2, 3).T)
    _, cast = load_model_folder(tmp_path / "m", dtype=np.float32)
    assert cast["unet"]["kernel"].dtype == np.float32


def test_float16_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "full", CONFIG, _params())
    save_model_folder(tmp_path / "half", CONFIG, _params(), dtype="float16")
    _, stored = load_model_folder(tmp_path / "half")
    assert stored["unet"]["conv_in"]["kernel"].dtype == stored["null_tokens"].dtype == np.float16
    assert stored["unet"]["steps"].dtype == np.int32
    _, loaded = load_model_folder(tmp_path / "half", dtype=np.float32)
    _assert_equal(loaded, cast_params(cast_params(_params(), np.float16), np.float32))
    sizes = [(tmp_path / name / "unet.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.65 * sizes[1]


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"unet/scale.*float16"):
        save_model_folder(tmp_path / "m", CONFIG, {"unet": {"scale": np.float32([1e6])}}, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_replaces_a_model_folder_and_drops_its_old_networks(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "m", CONFIG, {**_params(), "vgg": {"bias": np.zeros(1, np.float32)}})
    save_model_folder(tmp_path / "m", CONFIG, _params())
    assert sorted(load_model_folder(tmp_path / "m")[1]) == ["null_tokens", "unet"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_refuses_to_replace_anything_else(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("keep me")
    with pytest.raises(ModelFolderError, match="not a model folder"):
        save_model_folder(tmp_path / "photos", CONFIG, _params())
    assert (tmp_path / "photos" / "a.jpg").read_text() == "keep me"


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model_folder(tmp_path / "m", CONFIG, _params())

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(model_folder.safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model_folder(tmp_path / "m", CONFIG, {"unet": {"bias": np.ones(1, np.float32)}})
    _assert_equal(load_model_folder(tmp_path / "m")[1], _params())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_some_networks_only(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "m", CONFIG, _params())
    assert list(load_model_folder(tmp_path / "m", networks=("null_tokens",))[1]) == ["null_tokens"]
    with pytest.raises(ModelFolderError, match=r"missing vae\.safetensors"):
        load_model_folder(tmp_path / "m", networks=("vae",))


def test_check_params_names_what_is_wrong() -> None:
    expected = _params()
    check_params(_params(), expected)
    for change, message in [
        (lambda flat: flat.pop("unet/conv_in/bias"), r"1 missing \(unet/conv_in/bias\)"),
        (lambda flat: flat.update({"unet/extra": np.zeros(1)}), r"1 unexpected \(unet/extra\)"),
        (lambda flat: flat.update({"null_tokens": np.zeros((1, 8))}), r"null_tokens is \(1, 8\), not \(1, 1, 8\)"),
    ]:
        flat = flatten_params(_params())
        change(flat)
        with pytest.raises(ModelFolderError, match=message) as error:
            check_params(unflatten_params(flat), expected, "somewhere")
        assert str(error.value).startswith("somewhere: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["absent", "no config", "bad config", "no networks", "truncated"])
def test_load_errors_are_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "m"
    if damage != "absent":
        save_model_folder(folder, CONFIG, _params())
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "bad config":
        (folder / "config.json").write_text('{"name": 3,\n "nonsense": 1}')
    elif damage == "no networks":
        for file in folder.glob("*.safetensors"):
            file.unlink()
    elif damage == "truncated":
        (folder / "unet.safetensors").write_bytes((folder / "unet.safetensors").read_bytes()[:100])
    with pytest.raises(ModelFolderError) as error:
        load_model_folder(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_resolve_checkpoint(tmp_path: Path) -> None:
    save_model_folder(tmp_path / "m", CONFIG, _params())
    assert resolve_checkpoint(tmp_path / "m") == tmp_path / "m"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="exported no model yet"):
        resolve_checkpoint(run)
    save_model_folder(run / "model", CONFIG, _params())
    assert resolve_checkpoint(str(run)) == run / "model"
    with pytest.raises(ModelFolderError, match="no such folder"):
        resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match="neither a model folder"):
        resolve_checkpoint(tmp_path)


def test_shipped_model_folder_says_when_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelFolderError, match="ships no model"):
        resolve_checkpoint(None)
    save_model_folder(tmp_path / "shipped" / "tiny", CONFIG, _params())
    assert resolve_checkpoint(None) == tmp_path / "shipped" / "tiny"


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model_folder(tmp_path / "m", CONFIG, _params())
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        save_model_folder(tmp_path / "m", CONFIG, {"unet": {"bias": np.ones(1, np.float32)}})
    _assert_equal(load_model_folder(tmp_path / "m")[1], _params())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
