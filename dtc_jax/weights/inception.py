"""FID's InceptionV3 in pytorch-fid's layout (`pt_inception-2015-12-05`), which is torchvision's without `AuxLogits`.

Sources: mseitzer/pytorch-fid, src/pytorch_fid/inception.py at b9c18118d082cbd263c1b8963fc4221dc1cbb659; pytorch/vision,
torchvision/models/inception.py at 02a0a90b7ad1e9d69f1f392ad6701eb069f7db02.
"""

from __future__ import annotations

from dtc_jax.config import InceptionConfig
from dtc_jax.models.inception import IMAGE_SIZE, InceptionV3
from dtc_jax.weights.layouts import Entry, Layout, Shapes, rule_entries
from dtc_jax.weights.recognition import Detected, shape_of, shapes_of
from dtc_jax.weights.tensor_source import Shape, TensorSource, WeightsError


def _entries(shapes: Shapes) -> list[Entry]:
    # `branch5x5_1` is a name, not an item of a list.
    branches = {module for path in shapes for module in path.split("/") if module.startswith("branch")}
    return rule_entries(shapes, whole=sorted(branches))


PYTORCH_FID = Layout("pytorch-fid's InceptionV3", _entries, ignored=(r".*\.bn\.num_batches_tracked",))


def shapes(config: InceptionConfig) -> dict[str, Shape]:
    """Flax parameters of a network of these sizes."""
    return shapes_of(InceptionV3(config), (1, IMAGE_SIZE, IMAGE_SIZE, 3), method="logits")


def recognise(source: TensorSource) -> list[Detected]:
    """FID's Inception in a source; torchvision's own InceptionV3 has other weights and gives other distances."""
    names = frozenset(source.keys())
    if not {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"} <= names:
        return []
    num_classes, features = shape_of(source, "fc.weight", 2, "an InceptionV3")
    if any(name.startswith("AuxLogits.") for name in names) or num_classes == 1000:
        raise WeightsError(
            f"{source.path}: torchvision's InceptionV3 ({num_classes} classes); FID takes pytorch-fid's "
            "pt_inception-2015-12-05, of 1008 classes"
        )
    config = InceptionConfig(channel_divisor=max(1, 2048 // features), num_classes=num_classes)
    return [Detected("inception", PYTORCH_FID, source, config, shapes(config), "names")]
