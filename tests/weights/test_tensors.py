"""Files of weights: what is read is what was written, one tensor at a time, and damage is named."""

from __future__ import annotations

import errno
import json
import resource
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dtc_jax.weights.new_folder import new_folder
from dtc_jax.weights.safetensors_files import DTYPES
from dtc_jax.weights.tensors import ArraySource, LazyTensor, WeightsError, open_tensors, with_prefix, write_tensors


def lazy(arrays: dict[str, np.ndarray]) -> list[LazyTensor]:
    return [LazyTensor(name, array.shape, array.dtype, lambda a=array: a) for name, array in arrays.items()]


def some_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "a.weight": random.standard_normal((3, 5), dtype=np.float32),
        "b.weight": random.standard_normal(7).astype(ml_dtypes.bfloat16),
        "c.weight": random.standard_normal((2, 1, 3)).astype(np.float16),
        "count": np.array(4, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }


def assert_same(source_names: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    assert set(source_names) == set(arrays)
    for name, array in arrays.items():
        read = source_names[name]
        assert read.dtype == array.dtype and read.shape == array.shape, name
        assert read.tobytes() == array.tobytes(), name


def read_all(path: Path) -> dict[str, np.ndarray]:
    source = open_tensors(path)
    result = {}
    for name in source.keys():  # noqa: SIM118
        result[name] = source.read(name)
        assert source.shape(name) == result[name].shape and source.dtype(name) == result[name].dtype
    return result


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_as_the_library_writes_and_reads_it(dtype: np.dtype, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    write_tensors(tmp_path, "ours", lazy({"x": array}))
    assert_same(read_all(tmp_path / "ours.safetensors"), {"x": array})
    if dtype.name.startswith("float8"):  # the library has no numpy type for these
        return
    assert_same(safetensors.numpy.load_file(tmp_path / "ours.safetensors"), {"x": array})
    safetensors.numpy.save_file({"x": array}, tmp_path / "theirs.safetensors")
    assert_same(read_all(tmp_path / "theirs.safetensors"), {"x": array})


def test_a_file_of_several_types(tmp_path: Path) -> None:
    arrays = some_arrays()
    assert write_tensors(tmp_path, "model", lazy(arrays)) == [tmp_path / "model.safetensors"]
    assert_same(safetensors.numpy.load_file(tmp_path / "model.safetensors"), arrays)
    assert_same(read_all(tmp_path / "model.safetensors"), arrays)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_type_asked_for_is_stored_and_integers_stay(tmp_path: Path) -> None:
    arrays = some_arrays()
    write_tensors(tmp_path, "model", lazy(arrays), dtype="float16")
    read = read_all(tmp_path / "model.safetensors")
    assert {name: array.dtype.name for name, array in read.items()} == {
        name: "int64" if name == "count" else "float16" for name in arrays
    }
    np.testing.assert_array_equal(read["a.weight"], arrays["a.weight"].astype(np.float16))


def test_shards_and_their_index(tmp_path: Path) -> None:
    arrays = some_arrays()
    files = write_tensors(tmp_path, "model", lazy(arrays), max_shard_bytes=62)
    assert [path.name for path in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert index["weight_map"]["a.weight"] == files[0].name and index["weight_map"]["count"] == files[1].name
    for path in (tmp_path, files[-1]):
        assert_same(read_all(path), arrays)
    assert open_tensors(tmp_path).origin("count") == files[1]


def test_never_more_than_one_tensor_in_memory(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def read() -> np.ndarray:
        assert all(reference() is None for reference in alive), "an earlier tensor is still there"
        array = np.ones((8, 8), np.float32)
        alive.append(weakref.ref(array))
        return array

    tensors = [LazyTensor(f"{n}", (8, 8), np.dtype(np.float32), read) for n in range(5)]
    write_tensors(tmp_path, "model", tensors, dtype="bfloat16")
    assert len(alive) == 5


# ----------------------------------------------------------------------------------------------- which file is meant


def test_the_file_in_a_folder(tmp_path: Path) -> None:
    def put(name: str, value: float) -> None:
        safetensors.numpy.save_file({"x": np.float32([value])}, tmp_path / name)

    def value(**arguments: str) -> float:
        return float(open_tensors(tmp_path, **arguments).read("x")[0])

    put("model.fp16.safetensors", 2.0)
    assert value() == 2.0
    put("model.safetensors", 1.0)
    (tmp_path / "model.bin").write_bytes(b"never opened")
    assert value() == 1.0
    assert value(variant="fp16") == 2.0
    with pytest.raises(WeightsError, match="no file of weights of the variant bf16"):
        open_tensors(tmp_path, variant="bf16")
    put("other.safetensors", 3.0)
    with pytest.raises(WeightsError, match=r"several files of weights \(model.safetensors, other.safetensors\)"):
        open_tensors(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match="folder of several networks"):
        open_tensors(tmp_path)


def test_the_index_of_a_variant(tmp_path: Path) -> None:
    arrays = some_arrays()
    write_tensors(tmp_path, "model", lazy(arrays), max_shard_bytes=62)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("model", "model.fp16"))
    index = tmp_path / "model.fp16.safetensors.index.json"
    index.write_text(index.read_text().replace("model-", "model.fp16-"))
    index.rename(tmp_path / "model.safetensors.index.fp16.json")  # as diffusers names it
    assert_same(read_all(tmp_path), arrays)


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent.safetensors: no such file"):
        open_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="no file of weights in it"):
        open_tensors(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(WeightsError, match=r"weights are files that end in .safetensors"):
        open_tensors(tmp_path / "notes.txt")


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("keep", [0, 5, 40, -1, -20])
def test_a_file_that_was_cut_short(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(tmp_path, "model", lazy(some_arrays()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model.safetensors: (cut short|not a safetensors file)") as error:
        open_tensors(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = write_tensors(tmp_path, "model", lazy(some_arrays()))[0]
    source = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"model.safetensors: c.weight ends early"):
        source.read("c.weight")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\x03\x04" + b"\xff" * 20, "PyTorch pickle"),
        ((4).to_bytes(8, "little") + b"{{{{", "its header is damaged"),
        ((2).to_bytes(8, "little") + b"[]", "its header is damaged"),
        ((2).to_bytes(8, "little") + b"{}" + b"more", "damaged: 14 bytes, expected 10"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "its header is damaged"),
        ((5_000).to_bytes(8, "little") + b"9" * 5_000, "its header is damaged"),
    ],
)
def test_what_is_no_safetensors_file(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        open_tensors(path)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"x is \[2\] of F32, but has 4 bytes"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, "x has the type F4"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "x starts at byte 4 instead of 0"),
        ({"shape": [1]}, "its header is damaged"),
        (None, "its header is damaged"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 5]}, "its header is damaged"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0]}, "its header is damaged"),
        ({"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}, "x has a size or an offset that is none"),
        ({"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]}, "x has a size or an offset that is none"),
        ({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "x has a size or an offset that is none"),
        ({"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}, "x has a size or an offset that is none"),
    ],
)
def test_a_header_that_contradicts_itself(entry: dict, reason: str, tmp_path: Path) -> None:
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(WeightsError, match=reason):
        open_tensors(path)


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    arrays = some_arrays()
    first, second, index = write_tensors(tmp_path, "model", lazy(arrays), max_shard_bytes=62)
    good = json.loads(index.read_text())

    def opened_with(change: dict[str, str | None]) -> None:
        weight_map = {name: file for name, file in {**good["weight_map"], **change}.items() if file is not None}
        index.write_text(json.dumps({"weight_map": weight_map}))
        open_tensors(tmp_path)

    with pytest.raises(WeightsError, match=rf"{first.name}: zzz is not in the shard"):
        opened_with({"zzz": first.name})
    with pytest.raises(WeightsError, match=rf"{second.name}: count is in the shard but not in the index"):
        opened_with({"count": None})
    with pytest.raises(WeightsError, match="names a shard outside of its folder"):
        opened_with({"zzz": "../elsewhere.safetensors"})
    for text in ("{}", "[" * 100_000):
        index.write_text(text)
        with pytest.raises(WeightsError, match="not an index of shards"):
            open_tensors(tmp_path)
    index.write_text(json.dumps(good))
    second.unlink()
    with pytest.raises(WeightsError, match=rf"{second.name}: the shard is missing"):
        open_tensors(tmp_path)


# ----------------------------------------------------------------------------------------------------------- writing


def test_a_value_beyond_the_types_range_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    arrays = {"fine": np.ones(3, np.float32), "large": np.float32([1, 70000])}
    with pytest.raises(WeightsError, match=r"model.safetensors: large: 70000 is beyond the range of float16"):
        write_tensors(tmp_path, "model", lazy(arrays), dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    for name in ("model.safetensors", "sharded-00002-of-00002.safetensors"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(WeightsError, match=r"model.safetensors: exists already"):
        write_tensors(tmp_path, "model", lazy(some_arrays()))
    with pytest.raises(WeightsError, match=r"sharded-00002-of-00002.safetensors: exists already"):
        write_tensors(tmp_path, "sharded", lazy(some_arrays()), max_shard_bytes=62)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"precious"}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more than this to a file fails, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    arrays = {f"{n}": np.ones(20_000, np.float32) for n in range(3)}
    with largest_file(100_000), pytest.raises(WeightsError, match="cannot be written") as error:
        write_tensors(tmp_path, "model", lazy(arrays))
    assert str(error.value).startswith(f"{tmp_path / 'model.safetensors'}: 1 cannot be written (")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_folder_that_is_asked_for(tmp_path: Path) -> None:
    """And not the hidden one beside it, which is gone by then."""
    with (
        largest_file(1000),
        pytest.raises(WeightsError, match="x cannot be written") as error,
        new_folder(tmp_path / "asked") as folder,
    ):
        write_tensors(folder, "model", lazy({"x": np.ones(1000, np.float32)}))
    assert str(error.value).startswith(f"{tmp_path / 'asked' / 'model.safetensors'}: ")
    assert list(tmp_path.iterdir()) == []


def test_names_that_cannot_be_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"link.safetensors: exists already"):
        write_tensors(tmp_path, "link", lazy(some_arrays()))
    with pytest.raises(WeightsError, match="cannot be made"):
        write_tensors(tmp_path, "n" * 300, lazy(some_arrays()))
    with pytest.raises(WeightsError, match="cannot be made"), new_folder(tmp_path / ("n" * 300)):
        pass
    with new_folder(tmp_path / ("n" * 250)) as folder:
        write_tensors(folder, "m" * 240, lazy(some_arrays()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_in_which_nothing_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that can only be read: what there is to say is that nothing can be written."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(WeightsError, match=r"model.safetensors: cannot be written \(Read-only file system\)"):
        write_tensors(tmp_path, "model", lazy(some_arrays()))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        write_tensors(tmp_path / "absent", "model", lazy(some_arrays()))


def test_a_description_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    wrong = LazyTensor("x", (2,), np.dtype(np.float32), lambda: np.ones(3, np.float32))
    with pytest.raises(WeightsError, match=r"x is \(3,\), not \(2,\)"):
        write_tensors(tmp_path, "model", [wrong])
    with pytest.raises(ValueError, match="two of one name"):
        write_tensors(tmp_path, "model", lazy({"x": np.ones(1)}) * 2)
    assert list(tmp_path.iterdir()) == []


def test_a_view_of_one_network() -> None:
    source = ArraySource({"unet.a": np.ones(1), "unet.b": np.zeros(2), "vae.a": np.ones(3)}, Path("file.ckpt"))
    view = with_prefix(source, "unet.")
    assert list(view.keys()) == ["a", "b"]
    assert view.shape("b") == (2,) and view.read("b").shape == (2,) and view.dtype("a") == np.float64
    assert (view.full_name("absent"), view.origin("a"), view.path) == ("unet.absent", source.path, source.path)
