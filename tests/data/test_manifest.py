"""Manifests, on this machine and behind URIs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtc_jax.data.images import InputError, read_scene
from dtc_jax.data.inspect import main as inspect
from dtc_jax.data.manifest import read_manifest
from tests.data import files

LINE = '{"id": "one", "scene": "s.png", "box": [0, 0, 2, 2], "reference": "r.png"}'


def test_paths_are_relative_to_the_manifest_and_uris_are_left(tmp_path: Path) -> None:
    manifest = files.write_catalogue(tmp_path, count=2, test=1)
    lines = files.read_lines(manifest)
    lines[1] |= {"scene": "s3://bucket/a b.png", "seed": 3}
    cases = read_manifest(files.write_manifest(manifest, lines))
    assert cases[0].scene == tmp_path / "scenes" / "0.png" and cases[0].split == "train"
    assert cases[1].scene == "s3://bucket/a b.png" and cases[1].seed == 3
    lines[0]["scene"] = "scenes/absent.png"
    files.write_manifest(manifest, lines)
    with pytest.raises(InputError, match=r"line 1: scene .*absent\.png: no such file"):
        read_manifest(manifest)
    assert read_manifest(manifest, check_files=False)[0].scene == tmp_path / "scenes" / "absent.png"


def test_a_manifest_on_a_bucket_names_pictures_there() -> None:
    import fsspec

    line = {"id": "a", "scene": "x/s.png", "box": [0, 0, 2, 2], "reference": "gs://other/r.png"}
    fsspec.filesystem("memory").pipe("memory://one/two/m.jsonl", json.dumps(line).encode())
    (case,) = read_manifest("memory://one/two/m.jsonl")
    assert case.scene == "memory://one/two/x/s.png" and case.reference == "gs://other/r.png"
    with pytest.raises(InputError, match=r"scene memory://one/two/x/s\.png: cannot be read \(no such file\)"):
        read_scene(case.scene)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("one", r"bad\ud800"), r"'id' is 'bad\\ud800', which cannot be written as UTF-8"),
        (LINE.replace("}", r', "category": "\udfff"}'), r"'category' is '\\udfff', which cannot be written as UTF-8"),
        (LINE.replace("s.png", r"\ud800.png"), "'scene' is .* cannot be written as UTF-8"),
        (LINE.replace('"one"', "9" * 5000), r"cannot be read \(a number has too many digits\)"),
        ("[" * 100_000, r"not a JSON object \(its brackets are nested too deeply\)"),
    ],
    ids=["id", "category", "scene", "digits", "brackets"],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, line: str, message: str) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(f"{LINE.replace('one', 'two')}\n{line}\n")
    with pytest.raises(InputError, match=rf"^manifest .*m\.jsonl, line 2: {message}") as error:
        read_manifest(manifest, check_files=False)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert inspect([str(manifest)]) == 2


def test_whole_characters_beyond_the_first_65536_are_text(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(LINE.replace("one", r"chair \ud83e\ude91"))
    assert read_manifest(manifest, check_files=False)[0].id == "chair 🪑"


def test_a_mark_before_the_text_is_none_of_it(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(LINE, encoding="utf-8-sig")
    assert manifest.read_bytes().startswith(b"\xef\xbb\xbf")
    assert [case.id for case in read_manifest(manifest, check_files=False)] == ["one"]


def test_a_name_that_is_too_long_is_no_file(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(LINE.replace("s.png", "s" * 300))
    with pytest.raises(InputError, match=r"line 1: scene .*sss: no such file$"):
        read_manifest(manifest)


def test_a_uri_without_its_package_says_so() -> None:
    with pytest.raises(InputError) as error:
        read_manifest("nosuchscheme://bucket/m.jsonl")
    assert "nosuchscheme" in str(error.value) and "\n" not in str(error.value)
