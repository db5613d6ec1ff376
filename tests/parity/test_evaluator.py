"""The evaluator's figures against PyTorch, from published files and images to the figure: CLIP score, CLIP-FID, LPIPS.

Networks are random and of the smallest size; both sides read the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dtc_jax.config import AlexNetConfig, VGGConfig
from dtc_jax.data.images import InputError
from dtc_jax.evaluation.distributions import frechet_distance
from dtc_jax.evaluation.feature_networks import load_clip, load_lpips
from dtc_jax.evaluation.image_sets import from_folders
from dtc_jax.evaluation.measure import MeasureOptions, measure
from dtc_jax.weights.tensors import WeightsError
from tests.parity.naming import fill_randomly

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity import oracles  # noqa: E402 (needs PyTorch)

SIZE, COUNT = 48, 3
BOX = (4, 6, 38, 44)  # y0, x0, y1, x1
OPTIONS = MeasureOptions(batch_size=COUNT, set_resamples=0)
VGG16 = VGGConfig(block_channels=(4, 6, 8, 10, 12), convolutions_per_block=(2, 2, 3, 3, 3))
VGG19 = VGGConfig(block_channels=(4, 6, 8, 10, 12), convolutions_per_block=(2, 2, 4, 4, 4))
ALEX = AlexNetConfig(channels=(4, 6, 8, 10, 12))


@pytest.fixture(name="images", scope="module")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth/, results/ (other inside the mask), masks/, references/ (of another size)."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    y0, x0, y1, x1 = BOX
    for number in range(COUNT):
        truth = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        result, mask = truth.copy(), np.zeros((SIZE, SIZE), np.uint8)
        result[y0:y1, x0:x1] //= number + 2
        mask[y0:y1, x0:x1] = 255
        reference = random.integers(0, 256, (40, 56, 3), np.uint8)
        for part, image in (("truth", truth), ("results", result), ("masks", mask), ("references", reference)):
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / part / f"{number}.png")
    return folder


def shown(images: Path, part: str) -> list[Image.Image]:
    return [Image.open(images / part / f"{number}.png") for number in range(COUNT)]


def test_clip_score_and_clip_fid(images: Path, tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(
        image_size=32,
        patch_size=16,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        projection_dim=12,
    )
    oracle = transformers.CLIPVisionModelWithProjection(config).eval()
    fill_randomly(oracle, seed=1)
    oracle.save_pretrained(tmp_path / "clip")
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)

    def embedded(pictures: list[Image.Image], resample: Image.Resampling) -> Any:
        resized = [picture.resize((32, 32), resample) for picture in pictures]
        with torch.no_grad():
            return oracle(torch.tensor(np.stack(processor(resized)["pixel_values"]))).image_embeds

    y0, x0, y1, x1 = BOX
    regions = [picture.crop((x0, y0, x1, y1)) for picture in shown(images, "results")]
    pair = embedded(regions, Image.Resampling.BILINEAR), embedded(shown(images, "references"), Image.Resampling.BICUBIC)
    score = 100 * torch.nn.functional.cosine_similarity(*pair)
    assert score.std() > 1
    sets = [embedded(shown(images, part), Image.Resampling.BICUBIC).numpy() for part in ("results", "truth")]

    found = from_folders(images / "results", images / "truth", images / "masks", images / "references")
    measured = measure(found, {"clip": load_clip(str(tmp_path / "clip"))}, OPTIONS, progress=False)
    np.testing.assert_allclose(list(measured["values"]["clip_score"].values()), score, rtol=1e-4)
    assert measured["figures"]["clip_score"]["mean"] == pytest.approx(float(score.mean()), rel=1e-4)
    assert measured["figures"]["clip_fid"]["value"] == pytest.approx(frechet_distance(*sets), rel=1e-4)


def published(oracle: Any, backbone: VGGConfig | AlexNetConfig, folder: Path) -> dict[str, str]:
    """LPIPS as its own state, as its heads' file, and torchvision's file of its network; their paths."""
    state = oracle.state_dict()
    heads = {name: tensor for name, tensor in state.items() if name.startswith("lin")}
    names = {f"features.{name.split('.', 2)[2]}": t for name, t in state.items() if name.startswith("net.")}
    classifier = {"classifier.1.weight": torch.ones(2, 3), "classifier.1.bias": torch.ones(2)}
    assert names.keys() == {f"features.{name}" for name in oracles.torchvision_features(backbone).state_dict()}
    for name, tensors in (("whole", state), ("heads", heads), ("network", names | classifier)):
        torch.save(tensors, folder / f"{name}.pth")
    return {name: str(folder / f"{name}.pth") for name in ("whole", "heads", "network")}


@pytest.mark.parametrize("backbone", [VGG16, ALEX], ids=["vgg", "alex"])
def test_lpips_of_one_file_or_two(backbone: VGGConfig | AlexNetConfig, images: Path, tmp_path: Path) -> None:
    oracle = oracles.LPIPS(backbone).eval()
    fill_randomly(oracle, seed=1)
    paths = published(oracle, backbone, tmp_path)
    unit = [
        torch.tensor(np.stack([np.asarray(x) for x in shown(images, part)]) / 127.5 - 1).float().permute(0, 3, 1, 2)
        for part in ("results", "truth")
    ]
    with torch.no_grad():
        distance = oracle(*unit)
    assert distance.std() > 1e-2 * distance.abs().max()

    two = load_lpips([paths["heads"], paths["network"]])
    measured = measure(from_folders(images / "results", images / "truth"), {"lpips": two}, OPTIONS, progress=False)
    np.testing.assert_allclose(list(measured["values"]["lpips"].values()), distance, rtol=1e-4)
    smallest = 16 if backbone is VGG16 else 31
    with pytest.raises(
        InputError, match=rf"0: is {smallest - 1}x{smallest - 1} pixels; .* needs {smallest} on each side"
    ):
        options = MeasureOptions(resize=smallest - 1)
        measure(from_folders(images / "results", images / "truth"), {"lpips": two}, options, progress=False)
    # In any order, or in one file: the same network, by the hash of its weights.
    kind = "VGG" if backbone is VGG16 else "AlexNet"
    for files in ([paths["network"], paths["heads"]], [paths["whole"]]):
        described = load_lpips(files).describe()
        assert described == {**two.describe(), "files": files} and described["network"] == f"LPIPS with {kind}"


def test_what_is_no_whole_lpips_is_refused(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("vgg", "other", "vgg19")}
    for folder in folders.values():
        folder.mkdir()
    vgg = published(oracles.LPIPS(VGG16), VGG16, folders["vgg"])
    wider = VGGConfig(block_channels=(4, 6, 8, 10, 14), convolutions_per_block=(1, 1, 1, 1, 1))
    torch.save(
        {f"features.{name}": x for name, x in oracles.torchvision_features(wider).state_dict().items()},
        folders["other"] / "network.pth",
    )
    torch.save(
        {f"features.{name}": x for name, x in oracles.torchvision_features(VGG19).state_dict().items()},
        folders["vgg19"] / "network.pth",
    )
    for files, message in (
        ([vgg["heads"]], "add the network that its heads read"),
        ([vgg["network"]], r"add its heads \(LPIPS's vgg.pth or alex.pth\)"),
        ([vgg["heads"], vgg["heads"]], "add the network that its heads read"),
        ([vgg["heads"], vgg["network"], vgg["whole"]], "one file or two"),
        ([vgg["heads"], str(folders["other"] / "network.pth")], r"channels, and a network with \[4, 6, 8, 10, 14\]"),
        ([vgg["heads"], str(folders["vgg19"] / "network.pth")], "is VGG-19; LPIPS reads VGG-16"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_lpips(files)
