"""Records of prepared data sets: encoding and back, and finding a data set."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.config_base import ConfigError
from dtc_jax.data.records import RecordError, Sample, decode, encode, find_data_set, open_split


def _sample(size: int = 32) -> Sample:
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    scene = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)], -1
    )
    mask = np.zeros((size, size), np.uint8)
    mask[4:20, 6:15] = 1
    reference = np.full((20, 20, 3), 255, np.uint8)
    reference[5:15, 5:15] = [200, 30, 40]
    return Sample("chair 1é", scene, mask, reference, (4, 6, 20, 15), (4, 6, 20, 15), "furniture")


def test_a_record_is_the_sample_again() -> None:
    sample = _sample()
    read = decode(encode(sample))
    assert read[0] == sample.id and read.rectangle == sample.rectangle and read.box == sample.box
    assert read.category == "furniture"
    np.testing.assert_array_equal(read.mask, sample.mask)
    # JPEG at quality 95 without subsampling: a saturated edge between colours stays within a few levels.
    assert np.abs(read.scene.astype(int) - sample.scene).max() <= 6
    assert np.abs(read.reference.astype(int) - sample.reference).max() <= 16


def test_images_are_decoded_to_the_pixels_that_pillow_gives() -> None:
    grain = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    record = encode(_sample(48)._replace(scene=grain, reference=grain[:31, :31]))
    read = decode(record)
    for field in ("scene", "reference"):
        np.testing.assert_array_equal(getattr(read, field), np.asarray(Image.open(io.BytesIO(record[field]))))


@pytest.mark.parametrize("field", ["scene", "mask", "reference"])
def test_damaged_images_are_named(field: str) -> None:
    record = encode(_sample())
    image = record[field]
    # Cut off late, cut out early, no image at all, nothing.
    for damaged in (image[:-40], image[:-1], image[:8] + image[-12:], b"no image", b""):
        with pytest.raises(RecordError, match=r"'chair 1é'.*cannot be decoded"):
            decode({**record, field: damaged})


def test_damaged_records_are_named() -> None:
    record = encode(_sample())
    with pytest.raises(RecordError, match="do not fit"):
        decode({**record, "mask": encode(_sample(16))["mask"]})
    with pytest.raises(RecordError, match="outside 32x32"):
        decode({**record, "box": np.array([0, 0, 33, 2], np.int32)})


def _write(folder: Path, name: str = "product_pairs", **changes: object) -> None:
    folder.mkdir(parents=True)
    names = ("id", "scene", "mask", "reference", "rectangle", "box", "category")
    described = {feature: {} for feature in names} | {"scene": {"image": {"shape": {"dimensions": ["64", "64", "3"]}}}}
    info = {"name": name, "version": folder.name, "splits": [{"name": "train", "shardLengths": ["3", "4"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": described}}))
    (folder / "metadata.json").write_text(json.dumps({"schema": 1, "size": 64, **changes}))


def test_a_data_set_is_found_from_any_folder_above_it(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "product_pairs" / "1.9.0"
    _write(folder)
    _write(folder.with_name("1.10.0"))
    for path in (folder.with_name("1.10.0"), folder.parent, folder.parents[1]):
        found = find_data_set(path)
        assert found.version == "1.10.0" and found.splits == {"train": 7} and found.size == 64
    assert find_data_set(folder).version == "1.9.0"


def test_what_is_no_data_set_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        find_data_set(tmp_path / "absent")
    (tmp_path / "out" / "product_pairs" / "incomplete.ABC_1.0.0").mkdir(parents=True)
    with pytest.raises(ConfigError, match="did not finish"):
        find_data_set(tmp_path / "out")
    _write(tmp_path / "two" / "a" / "1.0.0")
    _write(tmp_path / "two" / "b" / "1.0.0")
    with pytest.raises(ConfigError, match="several data sets"):
        find_data_set(tmp_path / "two")
    _write(tmp_path / "later" / "1.0.0", schema=99)
    with pytest.raises(ConfigError, match="schema 99"):
        find_data_set(tmp_path / "later")
    # Here its features have no types.
    with pytest.raises(ConfigError, match=r"a/1\.0\.0: cannot be opened \(ValueError: .*\); build it again"):
        open_split(find_data_set(tmp_path / "two" / "a"), "train")


def test_reading_needs_no_tensorflow() -> None:
    code = "import sys, dtc_jax.data.records; assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
