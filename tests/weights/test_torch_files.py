"""PyTorch's own files: read without running anything in them."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dtc_jax.weights.tensors import WeightsError, open_tensors

torch = pytest.importorskip("torch")


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator),
        "turned": torch.randn(3, 4, generator=generator).T,
        "half": torch.randn(5, generator=generator).half(),
        "brain": torch.randn(5, generator=generator).bfloat16(),
        "eight": torch.randn(5, generator=generator).to(torch.float8_e4m3fn),
        "other eight": torch.randn(5, generator=generator).to(torch.float8_e5m2),
        "double": torch.randn(2, generator=generator).double(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "count": torch.tensor(3),
    }


def check(path: Path, tensors: dict[str, Any]) -> None:
    source = open_tensors(path)
    assert list(source.keys()) == list(tensors) and source.path == path
    for name, tensor in tensors.items():
        array = source.read(name)
        assert array.shape == tuple(tensor.shape) == source.shape(name)
        assert array.dtype == source.dtype(name)
        np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy(), err_msg=name)
    assert source.dtype("brain") == ml_dtypes.bfloat16 and source.dtype("eight") == ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize("name", ["model.ckpt", "model.pth", "model.pt", "model.bin"])
def test_every_type_and_ending(name: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / name)
    check(tmp_path / name, state())


def test_files_older_than_pytorch_1_6(tmp_path: Path) -> None:
    tensors = state()
    del tensors["eight"], tensors["other eight"]
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    source = open_tensors(tmp_path / "old.pth")
    np.testing.assert_array_equal(source.read("turned"), tensors["turned"].numpy())


@pytest.mark.parametrize("wrap", [{"state_dict": None, "epoch": 3, "optimizer": {"x": torch.ones(1)}}, {"model": None}])
def test_a_state_dict_inside_a_checkpoint(wrap: dict[str, Any], tmp_path: Path) -> None:
    key = next(iter(wrap))
    torch.save({**wrap, key: state()}, tmp_path / "model.ckpt")
    check(tmp_path / "model.ckpt", state())


def test_training_checkpoints_that_name_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_name = "pytorch_lightning.callbacks.model_checkpoint"
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module_name):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": module_name})
    sys.modules[module_name].ModelCheckpoint = callback  # type: ignore[attr-defined]
    torch.save({"state_dict": state(), "callbacks": {callback: {"monitor": "val/loss"}}}, tmp_path / "model.ckpt")
    monkeypatch.undo()
    assert module_name not in sys.modules
    check(tmp_path / "model.ckpt", state())
    assert module_name not in sys.modules


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "hook": Malicious(tmp_path / "ran")},
        path,
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(WeightsError, match=r"model.ckpt: holds more than tensors \(.+\) and could run code") as error:
        open_tensors(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol))
        with pytest.raises(WeightsError, match=r"model.bin: holds more than tensors \(.+\) and could run code"):
            open_tensors(path)
    torch.save({"a": Malicious(tmp_path / "ran")}, path, pickle_protocol=4)
    with pytest.raises(WeightsError, match="could run code"):
        open_tensors(path)
    assert not (tmp_path / "ran").exists()


def test_how_to_load_it_unsafely_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save(state(), path, pickle_protocol=4)
    with pytest.raises(WeightsError, match="a pickle of protocol 4, expected 2") as error:
        open_tensors(path)
    assert "weights_only" not in str(error.value)
    path.write_bytes(pickle.dumps([3, 4], 0) + b"more")
    with pytest.raises(WeightsError, match=r"model.bin: ") as error:
        open_tensors(path)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_files_cut_short_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"model.pth: cut short or damaged"):
        open_tensors(path)
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"model.pth: not a PyTorch file of weights, or cut short"):
        open_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model.pth: not a PyTorch file"):
        open_tensors(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match="Git LFS pointer"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "holds no state dict .* but a list"),
        ({"epoch": 3}, "holds no state dict"),
        ({"a": torch.ones(1), "epoch": 3}, "epoch is a int, not a tensor"),
        ({1: torch.ones(1)}, "a tensor is called 1"),
        ({None: torch.ones(1)}, "a tensor is called None"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is sparse"),
        ({"a": torch.ones(2, device="meta")}, r"a is empty \(meta\)"),
        (
            {"student": {"a": torch.ones(1)}, "teacher": {"a": torch.ones(1)}},
            r"several state dicts \(student, teacher\)",
        ),
    ],
)
def test_what_is_no_state_dict(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=reason):
        open_tensors(tmp_path / "model.pth")


def test_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state(), tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"model.pth: reading this file needs PyTorch \(pip install"):
        open_tensors(tmp_path / "model.pth")


def test_shards_of_pickles(tmp_path: Path) -> None:
    tensors = state()
    parts = {"pytorch_model-00001-of-00002.bin": ["a.weight", "half"], "pytorch_model-00002-of-00002.bin": ["brain"]}
    for file, names in parts.items():
        torch.save({name: tensors[name] for name in names}, tmp_path / file)
    torch.save({"step": 3}, tmp_path / "training_args.bin")
    weight_map = {name: file for file, names in parts.items() for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = open_tensors(tmp_path)
    assert set(source.keys()) == set(weight_map)
    np.testing.assert_array_equal(source.read("half"), tensors["half"].numpy())
