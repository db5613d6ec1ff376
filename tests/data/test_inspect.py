"""Looking a data set over: every kind of finding is found, and nothing in a good one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dtc_jax.data.build import main as build_main
from dtc_jax.data.builders.source import Case, make_sample
from dtc_jax.data.duplicates import look_of, same_looks
from dtc_jax.data.inspect import main
from dtc_jax.data.inspection import is_grey, is_inverted, is_on_white, spread
from dtc_jax.data.inspection_sheet import BOX, CELL, MASK, RECTANGLE, draw_row
from dtc_jax.data.records import find_data_set
from tests.data import files, prepared


def inspect(data: Path | str, folder: Path, *flags: str) -> tuple[int, dict]:
    """Exit code and the JSON."""
    report = folder / "report.json"
    code = main([str(data), "--json", str(report), "--size", "64", "--workers", "2", *flags])
    return code, json.loads(report.read_text()) if report.exists() else {}


def found(report: dict) -> dict[str, list[str]]:
    return {kind: entry["cases"] for kind, entry in report["findings"].items()}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A catalogue in which every case has something of its own wrong with it."""
    manifest = files.write_catalogue(tmp_path / "in", count=10, test=3)
    folder = tmp_path / "in"
    files.save(folder / "masks" / "0.png", 255 - files.mask())
    grey = files.mask().astype(int)
    grey[20:32, 24:36] = 150
    files.save(folder / "masks" / "1.png", grey.astype(np.uint8))
    files.save(folder / "products" / "2.png", files.photo(222, 40, 40))
    (folder / "scenes" / "3.png").write_text("no image")
    thin = np.zeros((60, 48), np.uint8)
    thin[10:50, 20] = 255
    files.save(folder / "masks" / "4.png", thin)
    # Duplicates: the product of case 5 tests in case 7, encoded again and smaller; the scene of case 6 in case 8.
    large = Image.fromarray(files.product(5)).resize((240, 240), Image.Resampling.NEAREST)
    large.save(folder / "products" / "5.png")
    buffer = io.BytesIO()
    large.resize((150, 150), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=70)
    (folder / "products" / "7.png").write_bytes(buffer.getvalue())
    files.save(folder / "scenes" / "8.png", files.photo(6))
    return manifest


def test_nothing_looks_wrong_in_a_good_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in")
    code, report = inspect(manifest, tmp_path, "--strict")
    assert code == 0 and report["findings"] == {}
    assert report["cases"] == {"train": 4, "test": 2} and report["inspected"] == 6
    assert report["scene_sizes"] == ["48x60"] * 3 and report["reference_sizes"] == ["40x40"] * 3
    assert "nothing looks wrong" in capsys.readouterr().out


def test_every_kind_of_finding(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = inspect(odd, tmp_path)
    assert code == 0
    assert found(report) == {
        "inverted masks": ["train/case-0"],
        "grey masks": ["train/case-1"],
        "references not on white": ["train/case-2"],
        "broken": ["train/case-3"],
        "largest rectangle of few pixels": ["train/case-4"],
        "references in more than one split": ["train/case-5 = test/case-7"],
        "scenes in more than one split": ["train/case-6 = test/case-8"],
    }
    assert "not an image" in report["problems"]["train/case-3"]
    said = capsys.readouterr().out
    assert "! broken: 1\n    train/case-3: scene" in said and "! inverted masks: 1: train/case-0" in said
    assert inspect(odd, tmp_path, "--strict")[0] == 1


def test_a_prepared_data_set_shows_what_its_manifest_did(odd: Path, tmp_path: Path) -> None:
    flags = ["--source", str(odd), "--output", str(tmp_path / "out"), "--size", "64", "--workers", "1"]
    assert build_main(["product_pairs", *flags]) == 0
    _, report = inspect(tmp_path / "out", tmp_path)
    assert report["kind"] == "prepared data set product_pairs 1.0.0"
    assert report["cases"] == {"train": 6, "test": 3} and report["description"]["num_broken"] == 1
    findings = found(report)
    assert findings.pop("inverted masks") == ["train/case-0"]
    assert findings == {
        "references not on white": ["train/case-2"],
        "largest rectangle of few pixels": ["train/case-4"],
        "references in more than one split": ["train/case-5 = test/case-7"],
        "scenes in more than one split": ["train/case-6 = test/case-8"],
    }


def test_vitonhd_folder_and_a_small_photo(tmp_path: Path) -> None:
    files.write_vitonhd(tmp_path / "in")
    code, report = inspect(tmp_path / "in", tmp_path, "--size", "256")
    assert code == 0 and report["kind"] == "VITON-HD folder" and "non-commercial" in report["description"]["licence"]
    assert len(found(report)["scenes enlarged more than twice"]) == 5


def flip_bytes(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[1000:1200] = bytes(byte ^ 255 for byte in content[1000:1200])
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason", "least"),
    [
        (flip_bytes, "RuntimeError: Corrupted", 1),
        (Path.unlink, "No such file", 4),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:1000]), "RuntimeError: ", 4),
    ],
    ids=["bytes", "absent", "cut off"],
)
def test_damaged_shards_are_broken_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], reason: str, least: int
) -> None:
    folder = find_data_set(prepared.write(tmp_path / "data", train=4, test=2)).folder
    damage(next(folder.glob("*-train.*")))
    code, report = inspect(folder, tmp_path, "--output", str(tmp_path / "sheet.png"))
    assert code == 0 and len(found(report)["broken"]) >= least and report["inspected"] == 6
    assert all(name.startswith("train/record ") for name in found(report)["broken"])
    assert reason in report["problems"]["train/record 0"] and "\n" not in report["problems"]["train/record 0"]
    assert "    train/record 0: " in capsys.readouterr().out and (tmp_path / "sheet.png").is_file()
    assert inspect(folder, tmp_path, "--strict")[0] == 1


def test_a_parse_map_of_a_size_that_cannot_be_is_one_broken_case(tmp_path: Path) -> None:
    files.write_vitonhd(tmp_path / "in")
    files.say_huge(tmp_path / "in" / "train" / "image-parse-v3" / "00001_00.png")
    code, report = inspect(tmp_path / "in", tmp_path)
    assert code == 0 and found(report)["broken"] == ["train/00001_00"]
    assert "cannot be decoded (Image size (3600000000 pixels)" in report["problems"]["train/00001_00"]


def test_outputs_do_not_replace_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    truth = tmp_path / "in" / "truth.png"
    files.save(truth, files.photo(9))
    lines = files.read_lines(manifest)
    files.write_manifest(manifest, [lines[0], {**lines[1], "truth": "truth.png"}])
    viton = files.write_vitonhd(tmp_path / "viton", train=1, test=1)
    records = find_data_set(prepared.write(tmp_path / "records", train=2, test=1)).folder
    (tmp_path / "link.png").symlink_to(truth)
    sheet = str(tmp_path / "sheet.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for data, flags, message in [
        (manifest, ["--json", str(manifest)], "is an input"),
        *[
            (manifest, ["--output", str(tmp_path / "in" / kind / "1.png")], "is an input")
            for kind in ("scenes", "masks", "products")
        ],
        (manifest, ["--output", str(truth)], "is an input"),
        (manifest, ["--output", str(tmp_path / "link.png")], "is an input"),
        (f"file://{manifest}", ["--json", str(manifest)], "is an input"),
        (f"file://{manifest}", ["--output", str(truth)], "is an input"),
        (manifest, ["--output", sheet, "--json", f"{tmp_path}/in/../sheet.png"], "is the file of --output, too"),
        (manifest, ["--json", str(tmp_path)], "is a folder"),
        (viton, ["--json", str(viton / "test_pairs.txt")], "is an input"),
        (viton, ["--output", str(viton / "train" / "image-parse-v3" / "00000_00.png")], "lies in the data"),
        (tmp_path / "records", ["--json", str(records / "dataset_info.json")], "lies in the data"),
        (tmp_path / "records", ["--output", str(records / "sheet.png")], "lies in the data"),
    ]:
        assert main([str(data), "--size", "64", "--workers", "1", *flags]) == 2, flags
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # What stood there before and is none of the data may be replaced.
    Path(sheet).write_text("an earlier sheet")
    assert inspect(manifest, tmp_path, "--output", sheet)[0] == 0 and Image.open(sheet).format == "PNG"
    assert inspect(manifest, tmp_path, "--output", sheet)[0] == 0


def test_pictures_here_of_a_manifest_elsewhere_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fsspec

    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    kinds = ("scene", "mask", "reference")
    lines = [
        line | {kind: f"file://{tmp_path}/in/{line[kind]}" for kind in kinds} for line in files.read_lines(manifest)
    ]
    remote = "memory://elsewhere/catalogue.jsonl"
    fsspec.filesystem("memory").pipe(remote, "\n".join(map(json.dumps, lines)).encode())
    for kind in ("scenes", "masks", "products"):
        picture = tmp_path / "in" / kind / "1.png"
        before = picture.read_bytes()
        assert main([remote, "--size", "64", "--output", str(picture)]) == 2
        said = capsys.readouterr().err
        assert "is an input" in said and said.count("\n") == 1 and picture.read_bytes() == before
    assert inspect(remote, tmp_path, "--output", str(tmp_path / "sheet.png"))[0] == 0


def test_the_longest_name_of_a_json(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    report = tmp_path / ("x" * 250 + ".json")
    assert main([str(manifest), "--size", "64", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["inspected"] == 2


def test_limit_and_sheet(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    _, report = inspect(odd, tmp_path, "--limit", "3", "--output", str(sheet), "--rows", "4")
    assert report["inspected"] == 6 and report["cases"] == {"train": 7, "test": 3}
    assert "6 of them inspected" in capsys.readouterr().out
    image = np.asarray(Image.open(sheet))
    # Four rows of three pictures; case 3 of train, the middle one of three, is broken and cannot be drawn.
    assert 4 * CELL < image.shape[0] < 5 * CELL and image.shape[1] > 3 * CELL
    assert [spread(10, 3), spread(2, 3), spread(3, None)] == [[0, 4, 9], [0, 1], [0, 1, 2]]


def test_a_row_shows_outlines_and_hint() -> None:
    product = files.product(0)
    product[6:20, 8:20] = 0  # black is the product's, not the canvas's
    sample = make_sample(Case("a", np.full((60, 48, 3), 90, np.uint8), files.mask(), product, ""), CELL)
    scene, hint, reference = draw_row(sample)
    for colour in (MASK, RECTANGLE, BOX):
        assert (scene == colour).all(axis=-1).sum() > 40
    y0, x0, y1, x1 = sample.rectangle
    assert (scene[y0 + 10 : y1 - 10, x0] == RECTANGLE).all() and (scene[:, : sample.box[1] - 2] == 90).all()
    inside = sample.mask != 0
    assert (hint[~inside] == 90).all() and not (hint[inside] == 90).all(axis=-1).any()
    middle = hint[(y0 + y1) // 2, x0 + 4 : x1 - 4]
    assert not (middle == 127).all(axis=-1).any(), "the product spans the rectangle"
    assert (hint == 0).all(axis=-1).sum() > 500
    assert reference.shape == (CELL, CELL, 3)


def test_rules_at_their_edges() -> None:
    assert not is_inverted(files.mask()) and is_inverted(255 - files.mask())
    whole = np.zeros((60, 48), np.uint8)
    whole[6:, 4:44] = 255
    assert not is_inverted(whole) and not is_inverted(np.full((60, 48), 255, np.uint8)), "large, and without a hole"
    smooth = np.array(Image.fromarray(files.mask()).resize((480, 600), Image.Resampling.BICUBIC).resize((48, 60)))
    assert not is_grey(smooth), "an edge that is only smooth"
    blurred = np.array(Image.fromarray(files.mask()).resize((6, 8)).resize((240, 300), Image.Resampling.BICUBIC))
    assert is_grey(blurred)
    book = np.full((64, 64, 3), 255, np.uint8)
    book[6:58, 10:54] = 40
    assert is_on_white(book), "a product that fills its bounding box"
    photo = np.full((64, 64, 3), 255, np.uint8)
    photo[12:52] = 40
    assert not is_on_white(photo), "a landscape photo, padded to a square"


def test_looks_tell_products_apart() -> None:
    looks = [(f"a{number}", "train", look_of(files.product(number))) for number in range(40)]
    looks += [(f"b{number}", "test", look_of(files.product(number))) for number in range(30, 60)]
    assert same_looks(looks) == [(f"a{number}", f"b{number}") for number in range(30, 40)]
    assert same_looks([(name, "train", look) for name, _, look in looks]) == [], "within a split is no finding"
    assert same_looks([]) == []


def test_errors_of_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = files.write_catalogue(tmp_path / "in", count=2, test=0)
    for arguments, message in [
        ([str(tmp_path / "absent")], "no such file or folder"),
        ([str(tmp_path / "in" / "scenes")], "not a prepared data set"),
        (["memory://absent/a.jsonl"], "no such file"),
        ([str(manifest), "--rows", "0"], "--rows must be at least 1"),
        ([str(manifest), "--output", "a.jpg"], "only .png is written"),
        ([str(manifest), "--json", str(tmp_path / "no" / "a.json")], "no such folder"),
        (["x" * 300], "cannot be read (File name too long)"),
        ([str(manifest), "--json", "x" * 300 + ".json"], "cannot be written (File name too long)"),
        ([str(manifest), "--json", "x" * 300 + "/a.json"], "cannot be written (File name too long)"),
        ([], "DATA"),
    ]:
        assert main(arguments) == 2, message
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    for number in range(2):
        (tmp_path / "in" / "scenes" / f"{number}.png").unlink()
    assert main([str(manifest), "--output", str(tmp_path / "a.png")]) == 2
    assert "no case that can be drawn" in capsys.readouterr().err
