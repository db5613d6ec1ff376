"""Building data sets: what becomes of pictures, what is left out and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.config_base import ConfigError
from dtc_jax.data.build import main
from dtc_jax.data.builders.manifest_source import ManifestSource
from dtc_jax.data.builders.report import allowed_broken
from dtc_jax.data.builders.source import Case, Item, make_sample
from dtc_jax.data.hints import trim_bounds
from dtc_jax.data.masks import bounding_box, largest_rectangle
from dtc_jax.data.records import decode, encode, find_data_set
from dtc_jax.data.references import store_reference
from tests.data import files
from tests.data.built import assert_same_records, build, records

# ---------------------------------------------------------------------------------------------------------- samples


def test_a_sample_is_the_window_that_sampling_sees() -> None:
    mask, scene = files.mask(), files.photo(0)
    sample = make_sample(Case("a", scene, mask, files.product(0), "chair"), 24, context=0.5)
    # The mask's box is 24 by 22 pixels: a window of 36, centred on it, and inside the photo.
    inner = (mask[14:50, 7:43] >= 128).astype(np.float64)
    assert sample.scene.shape == (24, 24, 3) and sample.mask.shape == (24, 24)
    assert sample.mask.sum() >= inner.reshape(12, 3, 12, 3).mean() * 24 * 24
    expected = np.array(Image.fromarray(scene[14:50, 7:43]).resize((24, 24), Image.Resampling.BOX))
    assert np.abs(sample.scene.astype(int) - expected).mean() < 3
    assert sample.rectangle == largest_rectangle(sample.mask)
    assert sample.box == bounding_box(sample.mask)


def test_a_small_product_keeps_some_of_the_photo() -> None:
    levels = np.zeros((200, 200), np.uint8)
    levels[100:104, 50:54] = 255
    sample = make_sample(Case("a", files.photo(0, 200, 200), levels, files.product(0), ""), 64)
    # Half of 64 pixels, not the 7 that its context asks for: 4 of 32 are 8 of 64.
    assert sample.box[2] - sample.box[0] == 8


def test_a_wide_mask_is_never_cut() -> None:
    levels = np.zeros((40, 200), np.uint8)
    levels[10:30, 5:195] = 255
    sample = make_sample(Case("a", files.photo(0, 40, 200), levels, files.product(0), ""), 64)
    y0, x0, y1, x1 = sample.box
    assert x0 > 0 and x1 < 64 and (x1 - x0) > 50, "the window reaches beyond the photo before it cuts the mask"
    assert y0 > 0 and y1 < 64


def test_references_are_squares_on_white_no_larger_than_scenes() -> None:
    tall = np.full((300, 100, 3), 255, np.uint8)
    tall[20:280, 10:90] = (30, 60, 200)
    sample = make_sample(Case("a", files.photo(0), files.mask(), tall, ""), 64)
    assert sample.reference.shape == (64, 64, 3)
    assert (sample.reference[:, 0] == 255).all() and (sample.reference[32, 32] == (30, 60, 200)).all()
    small = make_sample(Case("a", files.photo(0), files.mask(), files.product(0), ""), 64)
    assert small.reference.shape == (40, 40, 3), "small references are not enlarged"


def test_an_almost_white_margin_stays_white_in_the_record() -> None:
    # Levels just above what counts as white, with noise: JPEG alone would push some of it below, and widen the crop.
    grain = np.random.default_rng(0).choice(np.array([246, 255], np.uint8), (256, 256, 1), p=[0.3, 0.7])
    reference = grain.repeat(3, axis=2)
    reference[100:160, 20:236] = (40, 90, 160)
    stored = store_reference(reference, 256)
    read = decode(encode(make_sample(Case("a", files.photo(0), files.mask(), reference, ""), 256))).reference
    assert trim_bounds(stored) == (100, 20, 160, 236)
    assert np.abs(np.subtract(trim_bounds(read), (100, 20, 160, 236))).max() <= 7, "a JPEG block's width at most"


# ---------------------------------------------------------------------------------------------------- product pairs


def test_catalogue_to_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in")
    assert build("product_pairs", manifest, tmp_path / "out", "--name", "chairs") == 0
    assert "records: train 4, test 2" in capsys.readouterr().out
    data_set = find_data_set(tmp_path / "out")
    assert data_set.folder == tmp_path / "out" / "product_pairs" / "chairs" / "1.0.0"
    assert data_set.splits == {"train": 4, "test": 2} and data_set.size == 64
    assert data_set.metadata["source"] == str(manifest) and data_set.metadata["num_broken"] == 0
    assert [sample.id for sample in records(tmp_path / "out")] == [f"case-{number}" for number in range(4)]
    for number, sample in enumerate(records(tmp_path / "out")):
        expected = make_sample(
            Case("", files.photo(number), files.mask(), files.product(number), ""), 64, data_set.metadata["context"]
        )
        np.testing.assert_array_equal(sample.mask, expected.mask)
        assert sample.rectangle == largest_rectangle(sample.mask) and sample.box == bounding_box(sample.mask)
        assert np.abs(sample.scene.astype(int) - expected.scene).mean() < 2
        assert sample.category == "chair"
    assert not list((tmp_path / "out").rglob("incomplete*"))


def test_tfds_reads_it_without_tensorflow(tmp_path: Path) -> None:
    assert build("product_pairs", files.write_catalogue(tmp_path / "in"), tmp_path / "out") == 0
    folder = str(find_data_set(tmp_path / "out").folder)
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({folder!r}).as_data_source('train')\n"
        "record = source[3]\n"
        "assert record['scene'].shape == (64, 64, 3) and record['mask'].shape == (64, 64, 1), record\n"
        "assert set(record['mask'].ravel()) == {0, 255} and record['id'] == b'case-3'\n"
        "assert record['rectangle'].dtype.name == 'int32' and 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_truth_is_the_target_and_boxes_are_masks(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path, count=2, test=0)
    lines = files.read_lines(manifest)
    files.save(tmp_path / "truth.png", files.photo(99))
    lines[0]["truth"] = "truth.png"
    lines[1]["box"] = [14, 20, 36, 44]
    del lines[1]["mask"], lines[1]["split"], lines[1]["category"]
    source = ManifestSource(manifest=str(files.write_manifest(manifest, lines)))
    items = source.items()
    assert list(items) == ["train"]
    first, second = (source.open(item) for item in items["train"])
    assert isinstance(first, Case) and isinstance(second, Case)
    np.testing.assert_array_equal(first.scene, files.photo(99))
    assert bounding_box(second.mask_levels) == (20, 14, 44, 36) and second.mask_levels.sum() == 24 * 22 * 255
    assert second.category == ""


def test_broken_images_are_left_out_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=8)
    scenes, masks = tmp_path / "in" / "scenes", tmp_path / "in" / "masks"
    scenes.joinpath("1.png").write_bytes(scenes.joinpath("1.png").read_bytes()[:80])
    assert build("product_pairs", manifest, tmp_path / "one") == 0
    assert "broken and left out: 1 of 8" in capsys.readouterr().out
    data_set = find_data_set(tmp_path / "one")
    assert data_set.splits == {"train": 5, "test": 2} and data_set.metadata["broken"] == ["train/case-1"]
    log = (data_set.folder.parent / "broken-1.0.0.txt").read_text()
    assert log.startswith("train\tcase-1\tscene") and "damaged" in log
    assert [sample.id for sample in records(tmp_path / "one")] == [f"case-{n}" for n in (0, 2, 3, 4, 5)]

    files.save(masks / "2.png", np.zeros((60, 48), np.uint8))
    files.save(masks / "7.png", np.full((60, 40), 255, np.uint8))
    assert build("product_pairs", manifest, tmp_path / "three") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--max-broken 0.01" in said and "case-1" in said
    with pytest.raises(ConfigError):
        find_data_set(tmp_path / "three")
    # Mended files are read again, and a larger share lets the others go.
    files.save(scenes / "1.png", files.photo(1))
    assert build("product_pairs", manifest, tmp_path / "three", "--max-broken", "0.25") == 0
    data_set = find_data_set(tmp_path / "three")
    assert data_set.metadata["broken"] == ["train/case-2", "test/case-7"]
    log = (data_set.folder.parent / "broken-1.0.0.txt").read_text()
    assert "mask: is empty" in log and "40x60 pixels, its scene 48x60" in log
    files.save(masks / "2.png", files.mask())
    assert build("product_pairs", manifest, tmp_path / "none", "--max-broken", "0") == 2
    assert "1 of 8 cases are broken" in capsys.readouterr().err


def test_no_case_ends_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StrangeError(Exception):
        """As decoders have them."""

    original = ManifestSource.open

    def strange(self: ManifestSource, item: Item) -> object:
        if item.id == "case-1":
            raise StrangeError("of\nno kind")
        return original(self, item)

    monkeypatch.setattr(ManifestSource, "open", strange)
    assert build("product_pairs", files.write_catalogue(tmp_path / "in", count=4, test=1), tmp_path / "out") == 0
    assert "broken and left out: 1 of 4" in capsys.readouterr().out
    log = find_data_set(tmp_path / "out").folder.parent / "broken-1.0.0.txt"
    assert log.read_text() == "train\tcase-1\tStrangeError: of no kind\n"


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def test_ids_of_any_characters_are_listed_in_any_locale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=3, test=1)
    (tmp_path / "in" / "scenes" / "0.png").unlink()
    lines = files.read_lines(manifest)
    files.write_manifest(manifest, [lines[0] | {"id": "Stühle\t1\n2"}, *lines[1:]])

    def run(command: str, *arguments: str) -> str:
        environment = {**os.environ, **ASCII, "PYTHONPATH": str(Path(__file__).parents[2])}
        words = [sys.executable, "-m", f"dtc_jax.data.{command}", *arguments, "--workers", "1", "--size", "64"]
        return subprocess.run(words, env=environment, check=True, capture_output=True, timeout=120).stdout.decode()

    said = run("build", "product_pairs", "--source", str(manifest), "--output", str(tmp_path / "out"))
    assert "broken and left out: 1 of 3 cases" in said
    folder = find_data_set(tmp_path / "out").folder
    log = (folder.parent / "broken-1.0.0.txt").read_text(encoding="utf-8")
    assert log.startswith("train\tStühle\\t1\\n2\tscene ") and log.count("\t") == 2 and log.count("\n") == 1
    said = run("inspect", str(manifest))
    assert "! broken: 1\n    train/St\\xfchle\\t1\\n2: scene " in said, said
    assert build("product_pairs", manifest, tmp_path / "none", "--max-broken", "0") == 2
    error = capsys.readouterr().err
    assert "the first: Stühle\\t1\\n2: scene " in error and error.count("\n") == 1


def test_one_broken_case_is_allowed_unless_none_is() -> None:
    assert [allowed_broken(0.01, total) for total in (1, 99, 200, 1000)] == [1, 1, 2, 10]
    assert allowed_broken(0, 1000) == 0


def test_a_split_without_cases_left_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=3, test=1)
    (tmp_path / "in" / "scenes" / "2.png").unlink()
    assert build("product_pairs", manifest, tmp_path / "out") == 2
    assert "split test: none of its 1 cases is left" in capsys.readouterr().err


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=70, test=3)
    assert build("product_pairs", manifest, tmp_path / "one") == 0
    assert build("product_pairs", manifest, tmp_path / "two", "--workers", "2") == 0
    assert_same_records(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_catalogue_on_a_bucket(tmp_path: Path, scheme: str) -> None:
    import fsspec

    manifest = files.write_catalogue(tmp_path / "in")
    bucket = "memory://catalogue" if scheme == "memory" else f"file://{tmp_path}/in"
    if scheme == "memory":
        system = fsspec.filesystem("memory")
        for path in (tmp_path / "in").rglob("*.*"):
            system.pipe(f"{bucket}/{path.relative_to(tmp_path / 'in')}", path.read_bytes())
        shutil.rmtree(tmp_path / "in")
    assert build("product_pairs", f"{bucket}/{manifest.name}", tmp_path / "out") == 0
    assert [sample.id for sample in records(tmp_path / "out", "test")] == ["case-4", "case-5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "line 1: split 'dev': must be one of train, validation, test"),
        ({"mask": None}, "line 1: give 'mask' or 'box'"),
        ({"id": "a/b"}, "cannot be a file's name"),
        ({"id": "bad\ud800"}, "line 1: 'id' is 'bad\\ud800', which cannot be written as UTF-8"),
        ({"id": "case-1"}, "line 2: id 'case-1' was used before, in line 1"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_a_wrong_manifest_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    lines = files.read_lines(manifest)
    lines[0] |= change
    assert build("product_pairs", files.write_manifest(manifest, lines), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list((tmp_path / "out").rglob("dataset_info.json"))


def test_errors_of_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    output = tmp_path / "out"
    assert build("product_pairs", manifest, output) == 0
    for arguments, message in [
        ((manifest, output), "exists already"),
        ((tmp_path / "absent.jsonl", output, "--name", "b"), "cannot be read"),
        ((tmp_path / "in", output, "--name", "b"), "cannot be read"),
        (("memory://nothing/a.jsonl", output, "--name", "b"), "no such file"),
        ((manifest, "gs://bucket/out"), "local or mounted storage"),
        ((manifest, output, "--name", "../b"), "--name"),
        ((manifest, output, "--name", "no_source"), "choose another name"),
        ((manifest, output, "--name", "b", "--workers", "0"), "workers = 0"),
        ((manifest, output, "--name", "b", "--max-broken", "1.5"), "max_broken = 1.5"),
        ((manifest, output, "--name", "b", "--max-borken", "1"), "perhaps --max-broken"),
    ]:
        capsys.readouterr()
        assert build("product_pairs", *arguments) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert main(["imagenet"]) == 2 and "unknown data set" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert build("product_pairs", manifest, tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert build("product_pairs", manifest, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and said.count("\n") == 1
    with pytest.raises(ConfigError, match="did not finish"):
        find_data_set(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert build("product_pairs", manifest, tmp_path / "out") == 0
