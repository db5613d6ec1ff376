"""Results in files, measured: every figure against its formula, on any number of devices, and errors in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from dtc_jax import evaluate
from dtc_jax.data.records import decode, find_data_set, open_split
from dtc_jax.evaluation.color_histograms import color_histogram, nearest_is_own
from dtc_jax.evaluation.distributions import frechet_distance, kernel_distance
from dtc_jax.evaluation.feature_networks import (
    FeatureNetwork,
    inception_input,
    load_clip,
    load_dinov2,
    load_inception,
    load_lpips,
)
from dtc_jax.evaluation.image_sets import from_folders, images_in
from dtc_jax.evaluation.measure import MeasureOptions, measure
from dtc_jax.models.inputs import normalize_reference
from tests.data import prepared
from tests.evaluation.feature_files import write_networks

SIZE, COUNT = 32, 5
BOX = (4, 6, 20, 28)  # y0, x0, y1, x1


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth/, results/ (noisy inside the mask, image 2 also outside it), masks/, references/, cases.jsonl."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    y0, x0, y1, x1 = BOX
    lines = []
    for number in range(COUNT):
        truth = random.integers(0, 256, size=(SIZE, SIZE, 3), dtype=np.uint8)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y0:y1, x0:x1] = 255
        result = truth.copy()
        result[y0:y1, x0:x1] //= number + 2
        if number == 2:
            result[0, :8] ^= 255
        name = f"case{number}"
        save(folder / "truth" / f"{name}.png", truth)
        save(folder / "results" / f"{name}.png", result)
        save(folder / "masks" / f"{name}.png", mask)
        save(folder / "references" / f"{name}.png", random.integers(0, 256, size=(20, 24, 3), dtype=np.uint8))
        entry = {"id": name, "mask": f"masks/{name}.png", "reference": f"references/{name}.png"}
        lines.append(json.dumps({**entry, "scene": f"truth/{name}.png", "truth": f"truth/{name}.png"}))
    (folder / "cases.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(name="weights", scope="module")
def _weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_networks(tmp_path_factory.mktemp("weights"))


class Means(nn.Module):
    """In place of Inception, whose compilation takes minutes on a busy machine: means of parts of the image."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        mixing = self.param("mixing", nn.initializers.normal(), (48, 6))
        return jax.image.resize(images, (len(images), 4, 4, 3), "linear").reshape(len(images), 48) @ mixing


@pytest.fixture(name="networks", scope="module")
def _networks(weights: dict[str, str]) -> dict[str, FeatureNetwork]:
    return {
        "clip": load_clip(weights["clip"]),
        "dinov2": load_dinov2(weights["dinov2"]),
        "inception": load_inception(weights["inception"])._replace(
            module=Means(), params={"mixing": np.random.default_rng(1).normal(size=(48, 6)).astype(np.float32)}
        ),
        "lpips": load_lpips([weights["lpips"]]),
    }


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_figures_are_what_they_say_on_any_number_of_devices(files: Path, networks: dict[str, FeatureNetwork]) -> None:
    images = from_folders(files / "results", files / "truth", files / "masks", files / "references")
    options = MeasureOptions(batch_size=2, set_resamples=3)
    one, eight = (measure(images, networks, options, devices=jax.devices()[:count], progress=False) for count in (1, 8))
    assert one["left_out"] == {} and set(one["figures"]) == set(eight["figures"])
    for name, figure in one["figures"].items():
        other = eight["figures"][name]
        assert other.pop("n") == figure.pop("n")
        assert other == pytest.approx(figure, rel=1e-4, abs=1e-6), name
    assert any("FID: 5 images for 6 features" in text for text in one["warnings"])

    figures, values = one["figures"], one["values"]
    assert values["changed_outside"]["case2"] == pytest.approx(8 / (SIZE * SIZE - 16 * 22))
    assert figures["changed_outside"]["mean"] == pytest.approx(values["changed_outside"]["case2"] / COUNT)
    y0, x0, y1, x1 = BOX
    for number in range(COUNT):
        name = f"case{number}"
        shown, own = (read(files / part / f"{name}.png") for part in ("results", "truth"))
        error = np.mean(((shown.astype(float) - own)[y0:y1, x0:x1] / 255) ** 2)
        assert values["psnr_in_mask"][name] == pytest.approx(-10 * np.log10(error), rel=1e-4)

    colors = []
    for part in ("results", "references"):
        shown = [read(files / part / f"case{number}.png") for number in range(COUNT)]
        pixels = [image[y0:y1, x0:x1] if part == "results" else image for image in shown]
        colors.append(np.stack([color_histogram(image.reshape(-1, 3)) for image in pixels]))
    assert list(values["own_colors"].values()) == nearest_is_own(*colors).tolist()
    assert 0 < figures["own_colors"]["mean"] < 1, "both kinds"

    # Features by the plain modules; those of CLIP and LPIPS are compared with PyTorch's in tests/parity.
    dinov2 = networks["dinov2"]
    size = (dinov2.image_size,) * 2
    region = Image.fromarray(read(files / "results" / "case1.png")[y0:y1, x0:x1])
    product = Image.open(files / "references" / "case1.png")
    pair = np.stack([image.resize(size, Image.Resampling.BICUBIC) for image in (region, product)])
    a, b = np.asarray(jax.jit(dinov2.module.apply)({"params": dinov2.params}, normalize_reference(pair)))[:, 0]
    expected = 100 * a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert values["dinov2_similarity"]["case1"] == pytest.approx(expected, rel=1e-4)
    inception = networks["inception"]
    sets = [
        np.stack([inception_input(read(path)) for path in sorted((files / part).iterdir())])
        for part in ("results", "truth")
    ]
    a, b = (np.asarray(jax.jit(inception.module.apply)({"params": inception.params}, x)) for x in sets)
    assert figures["fid"]["value"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert figures["kid"]["value"] == pytest.approx(kernel_distance(a, b), rel=1e-3)


def test_the_command_writes_figures_protocol_and_a_table(
    files: Path, weights: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "truth", tmp_path / "perfect")
    arguments = ["images", "--results", str(files / "results"), "--manifest", str(files / "cases.jsonl")]
    arguments += ["--compare", f"perfect={tmp_path / 'perfect'}", "--clip", weights["clip"], "--batch-size", "8"]
    outputs = ["--output", str(tmp_path / "figures.json"), "--per-image", str(tmp_path / "images.json")]
    assert evaluate.main([*arguments, *outputs]) == 0
    report = json.loads((tmp_path / "figures.json").read_text())
    perfect = report["rows"]["perfect"]
    assert perfect["ssim"]["mean"] == pytest.approx(1) and perfect["psnr"]["mean"] == pytest.approx(100)
    assert perfect["changed_outside"]["mean"] == 0 and abs(perfect["clip_fid"]["value"]) < 1e-6
    assert report["rows"]["results"]["clip_fid"]["value"] > 10 * abs(perfect["clip_fid"]["value"])
    assert set(report["left_out"]) == {"dinov2_similarity", "fid", "kid", "lpips"}
    protocol = report["protocol"]
    assert len(protocol["networks"]["clip"]["weights"]) == 16
    assert protocol["pairing"] == "by name" and set(protocol["metrics"]) == set(perfect)
    assert {"git_revision", "jax", "python", "dtc_jax"} <= set(report["versions"])
    assert set(json.loads((tmp_path / "images.json").read_text())["results"]["ssim"]) == {
        f"case{i}" for i in range(COUNT)
    }
    printed = capsys.readouterr().out
    assert "| CLIP score ↑ " in printed and "left out: FID (no weights for it: --inception)" in printed
    # Paste-back takes what was changed outside away from the figures, but for the one that counts it.
    assert evaluate.main([*arguments[:5], "--paste-back", *outputs]) == 0
    pasted = json.loads((tmp_path / "figures.json").read_text())["rows"]["results"]
    assert pasted["psnr"]["mean"] > report["rows"]["results"]["psnr"]["mean"]
    assert pasted["changed_outside"] == report["rows"]["results"]["changed_outside"]


def test_unpaired_sets(files: Path, weights: dict[str, str], tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "others" / f"other{number}.png", read(files / "truth" / f"case{number}.png"))
    arguments = ["images", "--results", str(files / "results"), "--truth", str(tmp_path / "others"), "--unpaired"]
    assert evaluate.main([*arguments, "--clip", weights["clip"], "--output", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report["rows"]["results"]) == {"clip_fid"} and report["rows"]["results"]["clip_fid"]["n"] == [5, 3]
    assert report["left_out"]["ssim"] == "results and truths are not paired"
    assert report["left_out"]["clip_score"] == "no masks"


def test_a_set_with_itself_is_zero_and_noise_is_far(networks: dict[str, FeatureNetwork], tmp_path: Path) -> None:
    """FID, KID and CLIP-FID of folders of smooth pictures, of their equals, and of noise."""
    random, ramp = np.random.default_rng(3), np.linspace(0, 1, SIZE)[:, None, None]
    for number in range(12):
        for part in ("truth", "others"):
            corners = random.uniform(0, 255, size=(2, 3))
            picture = (corners[0] * ramp + corners[1] * (1 - ramp)) * (0.5 + 0.5 * ramp.transpose(1, 0, 2))
            save(tmp_path / part / f"{number}.png", picture.astype(np.uint8))
        save(tmp_path / "noise" / f"{number}.png", random.integers(0, 256, size=(SIZE, SIZE, 3), dtype=np.uint8))
    networks = {kind: networks[kind] for kind in ("inception", "clip")}
    options = MeasureOptions(paired=False, batch_size=8, set_resamples=0)
    real = images_in(tmp_path / "truth", "truth")
    same, others, noise = (
        measure(from_folders(tmp_path / part), networks, options, real=real, progress=False)["figures"]
        for part in ("truth", "others", "noise")
    )
    assert set(same) == {"fid", "kid", "clip_fid"}
    for name in ("fid", "clip_fid"):
        assert abs(same[name]["value"]) < 1e-6 * noise[name]["value"]
    for name in same:
        assert abs(same[name]["value"]) < 0.1 * noise[name]["value"], name
        assert abs(others[name]["value"]) < 0.5 * noise[name]["value"], name


def test_records_and_resize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results are called after the records' ids, of the split that is named, and brought to the size asked for."""
    folder = prepared.write(tmp_path / "data")
    source = open_split(find_data_set(folder), "test")
    samples = [decode(source[index]) for index in range(len(source))]
    assert len(samples) == 3 and samples[0].scene.shape == (SIZE, SIZE, 3)
    size = 24
    for number, sample in enumerate(samples):
        result = sample.scene.copy()
        result[sample.mask == 1] //= number + 2
        result[0, 0] ^= 255
        save(tmp_path / "results" / f"{sample.id}.png", np.kron(result, np.ones((2, 2, 1), np.uint8)))
        save(tmp_path / "scenes" / f"{sample.id}.png", sample.scene)
    arguments = ["images", "--results", str(tmp_path / "results"), "--records", str(folder)]
    outputs = ["--output", str(tmp_path / "figures.json"), "--per-image", str(tmp_path / "images.json")]
    assert evaluate.main(arguments) == 2
    assert "64x64 pixels, the truth 32x32; --resize N" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--resize", str(size), *outputs]) == 0
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["protocol"]["sets"]["results"].endswith("data set synthetic 1.0.0, split test")
    assert report["protocol"]["resize"].startswith("all images but references to 24 x 24, bicubic")
    values = json.loads((tmp_path / "images.json").read_text())["results"]
    square = (size, size)
    for sample in samples:
        shown = np.asarray(Image.open(tmp_path / "results" / f"{sample.id}.png").resize(square))
        own = np.asarray(Image.fromarray(sample.scene).resize(square))
        inside = np.asarray(Image.fromarray(sample.mask).resize(square, Image.Resampling.NEAREST)) == 1
        difference = shown.astype(float) - own
        expected = -10 * np.log10(np.mean((difference[inside] / 255) ** 2))
        assert values["psnr_in_mask"][sample.id] == pytest.approx(expected, rel=1e-4)
        changed = (np.abs(difference).max(axis=-1) > 0)[~inside].mean()
        assert values["changed_outside"][sample.id] == pytest.approx(changed) and changed > 0
    # Another split has other records, and lacks nothing silently.
    assert evaluate.main([*arguments, "--split", "train"]) == 2
    assert "lacks 7 of 10 that data set" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--split", "val"]) == 2
    assert "'val'" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--masks", str(tmp_path / "scenes")]) == 2
    assert "--records says what results are compared with; leave --masks out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("missing", ["--truth", "truth"], "results: lacks 2 of the 5 of truth"),
        ("missing", ["--manifest", "cases.jsonl"], "lacks 2 of 5 that manifest"),
        ("larger", ["--truth", "truth"], "the result is 40x40 pixels, the truth 32x32; --resize N"),
        ("empty", ["--truth", "truth"], "holds no images"),
        ("unmasked", ["--truth", "truth", "--masks", "masks"], "lacks 1 of 5 that results"),
        ("twice", ["--truth", "truth"], "several images are called case0"),
        ("", [], "results are compared with --truth"),
        ("", ["--truth", "nowhere"], "nowhere: no such folder"),
        ("", ["--manifest", "cases.jsonl", "--masks", "masks"], "leave --masks out"),
        ("", ["--manifest", "cases.jsonl", "--unpaired"], "--unpaired compares with the set"),
        ("", ["--truth", "truth", "--paste-back"], "--paste-back needs masks"),
        ("", ["--truth", "truth", "--clip", "truth/case0.png"], "weights are files that end in"),
        ("", ["--truth", "truth", "--resize", "2"], "--resize must be from 16"),
        ("", ["--truth", "truth", "--nonsense"], "see python -m dtc_jax.evaluate images --help"),
    ],
)
def test_errors_are_one_line(
    change: str,
    arguments: list[str],
    message: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    results = Path("results")
    if change in ("missing", "empty"):
        for path in sorted(results.iterdir())[: 2 if change == "missing" else None]:
            path.unlink()
    elif change == "larger":
        save(results / "case3.png", np.zeros((40, 40, 3), np.uint8))
    elif change == "unmasked":
        (Path("masks") / "case4.png").unlink()
    elif change == "twice":
        shutil.copy(results / "case0.png", results / "case0.jpg")
    assert evaluate.main(["images", "--results", "results", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1, error


def test_unknown_modes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["pictures"]) == 2
    assert "what is measured is products or images" in capsys.readouterr().err
