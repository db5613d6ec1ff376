"""VITON-HD to records: which mask, which pairs, what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dtc_jax.data.builders.source import Case
from dtc_jax.data.builders.vitonhd_source import VitonHDSource
from dtc_jax.data.images import InputError
from dtc_jax.data.records import find_data_set
from tests.data import files
from tests.data.built import build, records


@pytest.mark.parametrize("alias", ["image-parse-v3", "image-parse"])
def test_vitonhd_takes_the_garment_of_the_parse_map(tmp_path: Path, alias: str) -> None:
    source = VitonHDSource(root=str(files.write_vitonhd(tmp_path, parse_folder=alias)))
    items = source.items()
    assert {split: len(cases) for split, cases in items.items()} == {"train": 3, "test": 2}
    case = source.open(items["train"][1])
    assert isinstance(case, Case) and case.id == "00001_00"
    np.testing.assert_array_equal(case.mask_levels, (files.parse_map() == 5) * np.uint8(255))
    # Paired: the person's own garment, whatever the second column says.
    assert np.abs(case.reference.astype(int) - files.product(1)).mean() < 3
    assert np.abs(case.scene.astype(int) - files.photo(1, 100, 60)).mean() < 3


def test_vitonhd_pairs_may_begin_with_a_mark(tmp_path: Path) -> None:
    files.write_vitonhd(tmp_path)
    pairs = tmp_path / "train_pairs.txt"
    pairs.write_bytes(b"\xef\xbb\xbf" + pairs.read_bytes())
    assert [item.id for item in VitonHDSource(root=str(tmp_path)).items()["train"]] == [
        "00000_00",
        "00001_00",
        "00002_00",
    ]


def test_vitonhd_to_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_vitonhd(tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / "train" / "image-parse-v3")
    shutil.rmtree(tmp_path / "in" / "test" / "image-parse-v3")
    assert build("vitonhd", tmp_path / "in", tmp_path / "out") == 0
    assert "non-commercial" in capsys.readouterr().out
    data_set = find_data_set(tmp_path / "out")
    assert "CC BY-NC" in data_set.metadata["licence"] and data_set.metadata["noface"] is None
    assert "CC BY-NC" in (data_set.folder / "LICENSE").read_text()
    assert data_set.splits == {"train": 3, "test": 2}
    # The agnostic mask: a box of 48 by 42 pixels in a window of the photo's whole width.
    sample = records(tmp_path / "out")[0]
    y0, x0, y1, x1 = sample.box
    assert abs((y1 - y0) / (x1 - x0) - 48 / 42) < 0.1


def test_vitonhd_noface_in_the_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_vitonhd(tmp_path / "in")
    ids = files.parse_map()
    ids[ids == 13] = 2
    files.save_parse(tmp_path / "in" / "train" / "image-parse-v3" / "00001_00.png", ids)
    assert build("vitonhd", tmp_path / "in", tmp_path / "out", "--noface", "--name", "noface") == 0
    assert "skipped: 1 (noface: a head without a face in the parse map)" in capsys.readouterr().out
    metadata = find_data_set(tmp_path / "out").metadata
    assert metadata["noface"]["version"] == 1 and metadata["num_skipped"] == 1 and metadata["num_broken"] == 0
    assert metadata["skipped"] == {"noface: a head without a face in the parse map": 1}


def test_vitonhd_names_what_is_missing(tmp_path: Path) -> None:
    files.write_vitonhd(tmp_path)
    with pytest.raises(InputError, match="neither train/ nor test/"):
        VitonHDSource(root=str(tmp_path / "train" / "image")).items()
    shutil.rmtree(tmp_path / "train" / "image-parse-v3")
    with pytest.raises(InputError, match=r"has no image-parse-v3/ or image-parse/$"):
        VitonHDSource(root=str(tmp_path), noface=True).items()
    shutil.rmtree(tmp_path / "train" / "cloth")
    shutil.rmtree(tmp_path / "train" / "agnostic-mask")
    with pytest.raises(InputError, match="train: has no cloth/, no image-parse-v3/, image-parse/ or agnostic-mask/"):
        VitonHDSource(root=str(tmp_path)).items()
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "test_pairs.txt").unlink()
    with pytest.raises(InputError, match=r"test_pairs\.txt cannot be read"):
        VitonHDSource(root=str(tmp_path)).items()


def test_vitonhd_parse_maps_are_indices_of_the_photo_s_size(tmp_path: Path) -> None:
    source = VitonHDSource(root=str(files.write_vitonhd(tmp_path)))
    item = source.items()["train"][0]
    path = tmp_path / "train" / "image-parse-v3" / "00000_00.png"
    for image, message in [
        (np.zeros((100, 60, 3), np.uint8), r"^parse map \S+: is RGB, not a palette image"),
        (np.zeros((50, 30), np.uint8), "30x50 pixels, the photo 60x100"),
        (np.zeros((100, 60), np.uint8), "shows no garment"),
    ]:
        files.save(path, image)
        with pytest.raises(InputError, match=message):
            source.open(item)
    files.save_parse(path, files.parse_map())
    files.say_huge(path)
    with pytest.raises(InputError, match=r"parse map .*00000_00\.png: cannot be decoded \(Image size"):
        source.open(item)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        source.open(item)
