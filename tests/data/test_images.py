"""Reading pictures as they are displayed, whatever their mode; errors in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from dtc_jax.data.images import (
    InputError,
    check_output,
    on_white,
    read_box,
    read_mask,
    read_photo,
    read_reference,
    read_scene,
    remove_unfinished,
    write_image,
)
from dtc_jax.data.locations import local_path


def _photo(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    shown = _photo()
    # What a camera stores so that the viewer's transformation gives `shown`.
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown, 1),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(read_scene(path), shown)
    np.testing.assert_array_equal(read_reference(path), shown)


def test_scene_drops_alpha_and_reference_keeps_it_for_trimming(tmp_path: Path) -> None:
    rgba = _photo(channels=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.png"), rgba[..., :3])
    reference = read_reference(tmp_path / "a.png")
    np.testing.assert_array_equal(reference, rgba)
    expected = rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255)
    np.testing.assert_allclose(on_white(reference), expected, atol=0.51)
    rgba[..., 3] = 255
    assert read_reference(rgba).shape[-1] == 3
    rgba[..., 3] = 0
    with pytest.raises(InputError, match="wholly transparent"):
        read_reference(rgba)


def test_grey_palette_bilevel_and_grey_alpha(tmp_path: Path) -> None:
    grey = _photo()[..., 0]
    for mode, image in {
        "L": Image.fromarray(grey),
        "P": Image.fromarray(grey).convert("P"),
        "LA": Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey)]),
    }.items():
        path = tmp_path / f"{mode}.png"
        image.save(path)
        np.testing.assert_array_equal(read_scene(path), np.stack([grey] * 3, -1), err_msg=mode)
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_scene(tmp_path / "1.png")[..., 0], (grey > 100) * np.uint8(255))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "transparent.png", transparency=0)
    np.testing.assert_array_equal(on_white(read_reference(tmp_path / "transparent.png")), [[[255] * 3, [0, 0, 255]]])
    np.testing.assert_array_equal(read_scene(tmp_path / "transparent.png"), [[[255, 0, 0], [0, 0, 255]]])


def test_16_bit_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 0x80FF, 65535]], np.uint16)
    expected = values >> 8
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read_scene(tmp_path / name)[..., 0], expected)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), [[0, 0, 0, 1, 1]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    red = read_scene(tmp_path / "a.tif")
    assert red.shape == (3, 4, 3) and (red[0, 0] == [255, 0, 0]).all()
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "b.tif", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_scene(tmp_path / "b.tif"), red, err_msg="a broken profile is passed over")


def test_mask_threshold_alpha_and_arrays() -> None:
    np.testing.assert_array_equal(read_mask(np.array([[127, 128, 255]], np.uint8)), [[0, 1, 1]])
    np.testing.assert_array_equal(read_mask(np.array([[0, 1]], np.uint8)), [[0, 1]])
    np.testing.assert_array_equal(read_mask(np.array([[False, True]])), [[0, 1]])
    np.testing.assert_array_equal(read_mask(np.array([[[0.4], [0.5]]])), [[0, 1]])
    painted = np.full((1, 2, 4), 255, np.uint8)
    painted[0, 0, 3] = 0
    np.testing.assert_array_equal(read_mask(painted), [[0, 1]])


def test_mask_errors(tmp_path: Path) -> None:
    Image.new("L", (7, 5), 100).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask\.png: it is empty \(its largest value is 100"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(InputError, match="7x5 pixels but the scene as displayed is 5x7"):
        read_mask(tmp_path / "mask.png", (7, 5))
    Image.new("L", (7, 5), 255).save(tmp_path / "white.png")
    assert read_mask(tmp_path / "white.png").all(), "without a scene it is a mask like any other"
    with pytest.raises(InputError, match=r"white\.png: all of it is white, so nothing of the scene would be left"):
        read_mask(tmp_path / "white.png", (5, 7))


def test_box() -> None:
    mask = read_box((1, 2, 4, 3), (5, 7))
    assert mask.shape == (5, 7) and mask.sum() == 3 and mask[2, 1:4].all()
    for box in [(0, 0, 0, 1), (3, 0, 2, 1), (0, 0, 8, 1), (-1, 0, 2, 2), (0, 0, 1, 6), (1, 2, 3)]:
        with pytest.raises(InputError, match=r"^box"):
            read_box(box, (5, 7))


def test_unreadable_inputs_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(_photo(64, 64)).save(buffer, format="PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:2000])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name in ["text.png", "empty.png", "cut.png", "float.tif", "absent.png", "."]:
        with pytest.raises(InputError) as error:
            read_scene(tmp_path / name)
        assert "\n" not in str(error.value) and str(error.value).startswith("scene"), name
    for array in [np.zeros((2, 2, 3)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)]:
        with pytest.raises(InputError, match="scene"):
            read_scene(array)
    with pytest.raises(InputError, match="not int"):
        read_scene(3)  # type: ignore[arg-type]


def test_output_is_checked_and_written_whole(tmp_path: Path) -> None:
    photo = _photo()
    write_image(tmp_path / "out.png", photo)
    np.testing.assert_array_equal(read_scene(tmp_path / "out.png"), photo)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    (tmp_path / "folder.png").mkdir()
    for name in ["out.jpg", "out", "no/out.png", "folder.png"]:
        with pytest.raises(InputError, match=r"^output"):
            check_output(tmp_path / name)


def test_inputs_that_cannot_be_looked_at_are_passed_over(tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    write_image(output, _photo())
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "closed").mkdir(mode=0)
    strange = ["x" * 300, tmp_path / "loop.png", tmp_path / "closed" / "a.png", "a\0b", "file://~a\0b", "file:///a\0b"]
    check_output(output, [*strange, None, "memory://a.png", tmp_path / "absent.png"])
    with pytest.raises(InputError, match=r"out\.png: is an input"):
        check_output(output, [*strange, output])


def test_the_user_s_home_in_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "~.png", _photo())
    for scheme in ("file", "local"):
        np.testing.assert_array_equal(read_scene(f"{scheme}://~/~.png"), _photo())
        with pytest.raises(InputError, match="is an input"):
            check_output(tmp_path / "~.png", [f"{scheme}://~/~.png"])
    assert local_path("~/a.png") == Path("~/a.png"), "a plain path is taken as it is"


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]


def test_profile_of_an_rgb_scene_goes_into_the_result(tmp_path: Path) -> None:
    profile = _profile("sRGB")
    Image.fromarray(_photo()).save(tmp_path / "a.png", icc_profile=profile)
    write_image(tmp_path / "b.png", _photo(), read_photo(tmp_path / "a.png").metadata)
    assert Image.open(tmp_path / "b.png").info["icc_profile"] == profile
    Image.fromarray(_photo()[..., 0]).save(tmp_path / "grey.png", icc_profile=profile)
    assert read_photo(tmp_path / "grey.png").metadata.icc_profile is None
    np.testing.assert_array_equal(read_scene(tmp_path / "grey.png")[..., 0], _photo()[..., 0])


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_goes_into_the_result_with_its_orientation_reset(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x0111] = orientation, "A. Photographer", 77  # StripOffsets: of another file
    exif[0x8769] = {0x9003: "2026:11:01 10:00:00", 0x927C: b"maker's note", 0xA002: 64, 0xA003: 32}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    Image.new("RGB", (64, 32), (200, 90, 30)).save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(tmp_path / "a.jpg")
    write_image(tmp_path / "b.png", photo.pixels, photo.metadata)
    with Image.open(tmp_path / "b.png") as result:
        size, kept = result.size, result.getexif()
    assert size == ((64, 32) if orientation == 1 else (32, 64))
    assert (kept[0x0112], kept[0x013B], 0x0111 in kept) == (1, "A. Photographer", False)
    details = kept.get_ifd(0x8769)
    assert details[0x9003] == "2026:11:01 10:00:00" and 0x927C not in details
    assert (details[0xA002], details[0xA003]) == size
    assert kept.get_ifd(0x8825)[1] == "N"
    np.testing.assert_array_equal(read_scene(tmp_path / "b.png"), photo.pixels)


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_is_left_out(tmp_path: Path, block: bytes) -> None:
    Image.fromarray(_photo()).save(tmp_path / "a.png", exif=block)
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, _photo())
    assert photo.metadata.exif is None


def test_16_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"
    np.testing.assert_array_equal(read_scene(tmp_path / "a.png"), values >> 8)
    alpha = np.concatenate([values[..., ::-1], np.full((5, 7, 1), 0x80FF, np.uint16)], axis=-1)
    assert cv2.imwrite(str(tmp_path / "b.png"), alpha)
    assert (read_reference(tmp_path / "b.png")[..., 3] == 0x80).all()


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    colours = Image.new("RGB", (4, 3), (200, 90, 30))
    ImageCms.applyTransform(colours, to_lab).save(tmp_path / "a.tif")
    found = read_scene(tmp_path / "a.tif")
    assert found.shape == (3, 4, 3) and np.abs(found.astype(int) - (200, 90, 30)).max() <= 4


def test_profiles_of_what_is_not_rgb_are_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of the mode's own space is used, another's is not; the result is sRGB and says nothing else."""
    grey = Image.new("L", (4, 3), 100)
    grey.info["icc_profile"] = b"\0" * 16 + b"GRAY"
    seen = []

    def convert(image: Image.Image, source: object, target: object, outputMode: str) -> Image.Image:
        seen.append(image.mode)
        return Image.new(outputMode, image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: file)
    photo = read_photo(grey)
    assert (photo.pixels == (1, 2, 3)).all() and photo.metadata.icc_profile is None
    assert (read_mask(np.full((3, 4), 200, np.uint8)) == 1).all() and seen == ["L"]
    mask = Image.new("L", (4, 3), 200)
    mask.info["icc_profile"] = grey.info["icc_profile"]
    assert (read_mask(mask) == 1).all() and seen == ["L"], "a mask's values are no colours"
    for mode, space in [("LA", b"GRAY"), ("CMYK", b"CMYK"), ("L", b"RGB "), ("CMYK", b"GRAY")]:
        image = Image.new(mode, (4, 3))
        image.info["icc_profile"] = b"\0" * 16 + space
        read_scene(image)
    assert seen == ["L", "L", "CMYK"]


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "b.png", _photo())
    with monkeypatch.context() as patch:
        # A process that is killed does not clean up.
        patch.setattr(Path, "unlink", lambda path, missing_ok: None)
        patch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(OSError("killed")))
        for name in ("a.png", "b.png", "c.png"):
            with pytest.raises(InputError):
                write_image(tmp_path / name, _photo())
    (tmp_path / ".mine.tmp").touch()
    assert len(list(tmp_path.glob(".*.png.*.tmp"))) == 3
    remove_unfinished([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "absent.png"])
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[0].startswith(".c.png.") or left[1].startswith(".c.png."), left
    assert len(left) == 3 and {".mine.tmp", "b.png"} < set(left)
