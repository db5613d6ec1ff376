"""Pictures as exported folders read them, to the bit as we do: every mode, file and array, profiles and EXIF."""

from __future__ import annotations

import ast
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dtc_jax.data.images import InputError, read_mask, read_photo, read_reference
from dtc_jax.weights.export_pytorch.code_files import SHARED
from tests.data.profiles import grey_profile, ink_profile

HEIGHT, WIDTH = 6, 9


def values(channels: int, dtype: Any = np.uint8) -> np.ndarray:
    """Random ones, in the whole range."""
    most = np.iinfo(dtype).max
    array = np.random.default_rng(channels).integers(0, most, (HEIGHT, WIDTH, channels), dtype, endpoint=True)
    array[0, 0], array[0, 1] = most, 0
    return array


def of_mode(mode: str, profile: bytes | None = None, transparency: Any = None) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "1":
        image = Image.fromarray(values(1)[..., 0] > 99)
    elif mode == "LAB":
        # Through the conversion: random values would be colours that there are not.
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = to_lab.apply(Image.fromarray(values(3)))
    elif mode in ("P", "PA"):
        image = Image.fromarray(values(3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=7).convert(mode)
        if mode == "PA":
            image.putalpha(Image.fromarray(values(1)[..., 0]))
    else:
        image = Image.frombytes(mode, (WIDTH, HEIGHT), values(bands).tobytes())
    if profile is not None:
        image.info["icc_profile"] = profile
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def sixteen_bits(mode: str, profile: bytes | None = None) -> Image.Image:
    order = ">u2" if mode.endswith("B") else "<u2"
    array = values(1, np.uint16)[..., 0]
    if mode == "I":
        return Image.fromarray(array.astype(np.int32))
    image = Image.frombytes(mode, (WIDTH, HEIGHT), array.astype(order).tobytes())
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def profile_of(name: Any) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


IN_MEMORY: dict[str, Callable[[], Image.Image]] = {
    **{mode: lambda mode=mode: of_mode(mode) for mode in ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK", "LAB")},
    **{mode: lambda mode=mode: of_mode(mode) for mode in ("LA", "PA", "RGBA", "La", "RGBa")},
    **{mode: lambda mode=mode: sixteen_bits(mode) for mode in ("I", "I;16", "I;16B")},
    "L, gamma 1": lambda: of_mode("L", grey_profile()),
    "LA, gamma 1": lambda: of_mode("LA", grey_profile()),
    "I;16, gamma 1": lambda: sixteen_bits("I;16", grey_profile()),
    "L, another space's profile": lambda: of_mode("L", profile_of("sRGB")),
    "L, a damaged profile": lambda: of_mode("L", grey_profile()[:140]),
    "CMYK, inks": lambda: of_mode("CMYK", ink_profile()),
    "CMYK, a damaged profile": lambda: of_mode("CMYK", b"no profile"),
    "LAB, profile": lambda: of_mode("LAB", profile_of("LAB")),
    "RGB, profile": lambda: of_mode("RGB", profile_of("sRGB")),
    "P, one colour transparent": lambda: of_mode("P", transparency=2),
    "L, one level transparent": lambda: of_mode("L", transparency=0),
    "RGB, one colour transparent": lambda: of_mode("RGB", transparency=(0, 0, 0)),
}


def png(path: Path, bits: int, kind: int, array: np.ndarray, transparent: bytes | None = None) -> Path:
    """A PNG of a kind that Pillow does not write (PNG 1.2, clause 4)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.tobytes() for row in array.astype(">u2"))
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0))
    content += chunk(b"tRNS", transparent) if transparent else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B], exif[0x0111] = orientation, "A. Photographer", 77
    exif[0x8769] = {0x9003: "2026:11:01 10:00:00", 0x927C: b"maker's note", 0xA002: WIDTH, 0xA003: HEIGHT}
    return exif


IN_FILES: dict[str, Callable[[Path], Path]] = {
    "16-bit grey PNG": lambda folder: saved(folder / "a.png", sixteen_bits("I;16")),
    "16-bit grey TIFF": lambda folder: saved(folder / "a.tif", sixteen_bits("I;16B")),
    "16-bit grey and alpha": lambda folder: png(folder / "a.png", 16, 4, values(2, np.uint16)),
    "16-bit grey, one level transparent": lambda folder: png(folder / "a.png", 16, 0, values(1, np.uint16), b"\0\0"),
    "16-bit colour": lambda folder: png(folder / "a.png", 16, 2, values(3, np.uint16)),
    "16-bit colour and alpha": lambda folder: png(folder / "a.png", 16, 6, values(4, np.uint16)),
    "Lab TIFF": lambda folder: saved(folder / "a.tif", of_mode("LAB")),
    "CMYK JPEG": lambda folder: saved(folder / "a.jpg", of_mode("CMYK"), icc_profile=ink_profile()),
    "grey JPEG": lambda folder: saved(folder / "a.jpg", of_mode("L"), icc_profile=grey_profile(1.8)),
    "palette GIF": lambda folder: saved(folder / "a.gif", of_mode("P"), transparency=1),
    "damaged EXIF": lambda folder: saved(folder / "a.png", of_mode("RGB"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    **{
        f"orientation {number}": lambda folder, number=number: saved(
            folder / "a.jpg", of_mode("RGB"), exif=turned(number), icc_profile=profile_of("sRGB")
        )
        for number in range(1, 9)
    },
}


def assert_equal_readings(images: ModuleType, source: Any) -> None:
    ours = read_photo(source)
    pixels, metadata = images.read_photo(source)
    np.testing.assert_array_equal(pixels, ours.pixels)
    assert (metadata.icc_profile, metadata.exif) == (ours.metadata.icc_profile, ours.metadata.exif)
    np.testing.assert_array_equal(images.read_mask(source, pixels.shape[:2]), read_mask(source))
    reference = read_reference(source)
    np.testing.assert_array_equal(images.read_reference(source), reference)
    assert pixels.dtype == np.uint8 and pixels.std() > 20, "an even picture proves nothing"


@pytest.mark.parametrize("name", IN_MEMORY)
def test_every_mode(name: str, template: ModuleType) -> None:
    assert_equal_readings(template.dtc_images, IN_MEMORY[name]())


@pytest.mark.parametrize("name", IN_FILES)
def test_every_file(name: str, template: ModuleType, tmp_path: Path) -> None:
    assert_equal_readings(template.dtc_images, IN_FILES[name](tmp_path))


def test_profiles_of_these_tests_do_something() -> None:
    """Half of the light at gamma 1 is a light grey in sRGB; inks by their table are not inks by subtraction."""
    grey = Image.new("L", (1, 1), 128)
    grey.info["icc_profile"] = grey_profile()
    assert np.abs(read_photo(grey).pixels.astype(int) - 188).max() <= 1
    inks = of_mode("CMYK", ink_profile())
    difference = read_photo(inks).pixels.astype(int) - read_photo(of_mode("CMYK")).pixels
    assert np.abs(difference).max() > 40


def test_results_say_what_the_scene_says_of_itself(template: ModuleType, tmp_path: Path) -> None:
    path = IN_FILES["orientation 6"](tmp_path)
    pixels, metadata = template.dtc_images.read_photo(path)
    image = template.pipeline.to_pil(pixels, metadata)
    image.save(tmp_path / "b.png", exif=image.info["exif"])
    with Image.open(tmp_path / "b.png") as again:
        assert again.size == (HEIGHT, WIDTH) and again.info["icc_profile"] == profile_of("sRGB")
        assert (again.getexif()[0x0112], again.getexif()[0x013B]) == (1, "A. Photographer")
    assert not template.pipeline.to_pil(pixels, read_photo(pixels).metadata).info


def test_masks_as_arrays(template: ModuleType) -> None:
    share = np.linspace(0, 1, 54).reshape(6, 9)
    masks = [share > 0.3, share, share.astype(np.float32)[..., None], (share > 0.3).astype(np.int64), values(1)]
    for mask in [*masks, values(3), values(4), values(1)[..., 0], (share > 0.3).astype(np.uint8)]:
        np.testing.assert_array_equal(template.dtc_images.read_mask(mask, (6, 9)), read_mask(mask))


def test_what_nobody_can_read_is_refused(template: ModuleType) -> None:
    floats = Image.fromarray(np.zeros((2, 2), np.float32))
    for array in (floats, np.zeros((2, 2, 3)), np.zeros((2, 2, 2), np.uint8)):
        with pytest.raises(InputError):
            read_photo(array)
        with pytest.raises(ValueError, match=r"^scene: "):
            template.dtc_images.read_photo(array)


def test_masks_without_an_inside_or_an_outside(template: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^mask: empty"):
        template.dtc_images.read_mask(np.zeros((4, 5), bool), (4, 5))
    with pytest.raises(ValueError, match=r"^mask: all of it is white"):
        template.dtc_images.read_mask(np.ones((4, 5), bool), (4, 5))


def test_shared_modules_need_nothing_of_ours() -> None:
    folder = Path(__file__).resolve().parents[2] / "dtc_jax" / "data"
    for name in SHARED.values():
        nodes = list(ast.walk(ast.parse((folder / name).read_text())))
        found = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        others = {module.split(".")[0] for module in found} - set(sys.stdlib_module_names)
        assert others <= {"PIL", "numpy"}, name
