"""Networks that no package beside PyTorch brings, in plain torch.nn under the published names.

Sources of names, sizes and order:

- HED: lllyasviel/ControlNet, annotator/hed/__init__.py at ed85cd1e25a5ed592f7d8178495b4483de0331bf.
- Inception: pytorch/vision, torchvision/models/inception.py at 02a0a90b7ad1e9d69f1f392ad6701eb069f7db02, with the
  patches of mseitzer/pytorch-fid, src/pytorch_fid/inception.py at b9c18118d082cbd263c1b8963fc4221dc1cbb659.
- LPIPS: richzhang/PerceptualSimilarity, lpips/lpips.py and lpips/pretrained_networks.py at
  019657996e5c3310a83dba6a8124e3547ca35a6d; its networks: pytorch/vision, torchvision/models/vgg.py and alexnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from dtc_jax.config import AlexNetConfig, VGGConfig

Convolution = tuple[str, int, tuple[int, int], int]
"""Name, output channels, kernel, stride; padding is "same" at stride 1 and none at stride 2."""


class HEDBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, count: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * count
        self.convs = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)))
        self.projection = nn.Conv2d(channels, 1, 1)


class HED(nn.Module):
    """`forward` takes RGB in 0..255 and returns the logits of every block."""

    def __init__(self, channels: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        widths = [3, *channels]
        for number, count in enumerate(counts):
            self.add_module(f"block{number + 1}", HEDBlock(widths[number], widths[number + 1], count))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = x - self.norm
        logits = []
        for number, block in enumerate(self.children()):
            x = F.max_pool2d(x, 2) if number > 0 else x
            for conv in block.convs:
                x = F.relu(conv(x))
            logits.append(block.projection(x))
        return logits


class ConvNormReLU(nn.Module):
    def __init__(self, in_channels: int, channels: int, kernel: tuple[int, int], stride: int, pad: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


def average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def halving(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, 2)


class Mixed(nn.Module):
    """Branches side by side, joined in order.

    Args:
        branches: Each a chain of convolutions; a tuple of two in place of the last splits into two outputs.
        pool: Of the last branch.
        projection: Channels of the convolution after the pooling; none if None.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Sequence[Convolution | tuple[Convolution, Convolution]]],
        pool: Callable[[torch.Tensor], torch.Tensor],
        projection: int | None,
    ) -> None:
        super().__init__()
        self.branches, self.pool, self.projection = branches, pool, projection
        self.out_channels = in_channels if projection is None else projection
        for branch in branches:
            width = in_channels
            for step in branch:
                for name, channels, kernel, stride in [step] if isinstance(step[0], str) else step:
                    self.add_module(name, ConvNormReLU(width, channels, kernel, stride, pad=stride == 1))
                    self.out_channels += channels if step is branch[-1] else 0
                width = channels
        if projection is not None:
            self.add_module("branch_pool", ConvNormReLU(in_channels, projection, (1, 1), 1, pad=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                if isinstance(step[0], str):
                    y = getattr(self, step[0])(y)
                else:
                    y = torch.cat([getattr(self, split[0])(y) for split in step], dim=1)
            outputs.append(y)
        pooled = self.pool(x)
        outputs.append(pooled if self.projection is None else self.branch_pool(pooled))
        return torch.cat(outputs, dim=1)


def chain(name: str, *steps: tuple[int, tuple[int, int]], stride: int = 1) -> list[Convolution]:
    """`name_1`, `name_2`, ...; the stride is the last one's."""
    last = len(steps)
    return [
        (f"{name}_{number}", channels, kernel, stride if number == last else 1)
        for number, (channels, kernel) in enumerate(steps, start=1)
    ]


class Inception(nn.Module):
    """`forward` takes images in [-1, 1] and returns the pooled features and the logits.

    Args:
        divisor: Of all numbers of channels.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, divisor: int = 1, num_classes: int = 1008) -> None:
        super().__init__()
        d = divisor
        point, row, column = (1, 1), (1, 7), (7, 1)

        def stem(a: int, b: int, size: int, stride: int = 1, pad: bool = False) -> ConvNormReLU:
            return ConvNormReLU(a, b // d, (size, size), stride, pad)

        self.Conv2d_1a_3x3 = stem(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = stem(32 // d, 32, 3)
        self.Conv2d_2b_3x3 = stem(32 // d, 64, 3, pad=True)
        self.Conv2d_3b_1x1 = stem(64 // d, 80, 1)
        self.Conv2d_4a_3x3 = stem(80 // d, 192, 3)
        width = 192 // d

        def add(name: str, branches: Sequence, pool: Callable, projection: int | None) -> None:
            nonlocal width
            block = Mixed(width, branches, pool, projection)
            self.add_module(name, block)
            width = block.out_channels

        for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
            branches = [
                [("branch1x1", 64 // d, point, 1)],
                chain("branch5x5", (48 // d, point), (64 // d, (5, 5))),
                chain("branch3x3dbl", (64 // d, point), (96 // d, (3, 3)), (96 // d, (3, 3))),
            ]
            add(f"Mixed_5{letter}", branches, average, pooled // d)
        branches = [
            [("branch3x3", 384 // d, (3, 3), 2)],
            chain("branch3x3dbl", (64 // d, point), (96 // d, (3, 3)), (96 // d, (3, 3)), stride=2),
        ]
        add("Mixed_6a", branches, halving, None)
        for letter, middle in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            c, out = middle // d, 192 // d
            branches = [
                [("branch1x1", out, point, 1)],
                chain("branch7x7", (c, point), (c, row), (out, column)),
                chain("branch7x7dbl", (c, point), (c, column), (c, row), (c, column), (out, row)),
            ]
            add(f"Mixed_6{letter}", branches, average, out)
        branches = [
            chain("branch3x3", (192 // d, point), (320 // d, (3, 3)), stride=2),
            chain("branch7x7x3", (192 // d, point), (192 // d, row), (192 // d, column), (192 // d, (3, 3)), stride=2),
        ]
        add("Mixed_7a", branches, halving, None)
        for letter, pool in (("b", average), ("c", maximum)):
            wide = 384 // d
            branches = [
                [("branch1x1", 320 // d, point, 1)],
                [
                    ("branch3x3_1", wide, point, 1),
                    (("branch3x3_2a", wide, (1, 3), 1), ("branch3x3_2b", wide, (3, 1), 1)),
                ],
                [
                    ("branch3x3dbl_1", 448 // d, point, 1),
                    ("branch3x3dbl_2", wide, (3, 3), 1),
                    (("branch3x3dbl_3a", wide, (1, 3), 1), ("branch3x3dbl_3b", wide, (3, 1), 1)),
                ],
            ]
            add(f"Mixed_7{letter}", branches, pool, 192 // d)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = halving(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halving(x))))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        features = x.mean(dim=(2, 3))
        return features, self.fc(features)


def double_the_variance(module: nn.Module) -> None:
    """Scale convolutions, in place, so that ReLUs (which halve it) leave the signal's size through many layers."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(2**0.5)


LPIPS_SLICES = {"vgg": (0, 4, 9, 16, 23, 30), "alex": (0, 2, 5, 8, 10, 12)}
"""Where LPIPS cuts torchvision's layers; a slice ends with the ReLU that is compared."""


def torchvision_features(config: VGGConfig | AlexNetConfig) -> nn.Sequential:
    """torchvision's `vgg16().features` or `alexnet().features`, with the channels of a config."""
    layers: list[nn.Module] = []
    if isinstance(config, AlexNetConfig):
        kernels = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        for number, ((a, b), (size, stride, padding)) in enumerate(
            zip(pairwise((3, *config.channels)), kernels, strict=True)
        ):
            layers += [nn.Conv2d(a, b, size, stride, padding), nn.ReLU()]
            if number in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2))
        return nn.Sequential(*layers)
    channels = 3
    for width, count in zip(config.block_channels, config.convolutions_per_block, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """lpips/lpips.py's `LPIPS` in evaluation; `forward` takes two batches of images in [-1, 1]."""

    def __init__(self, config: VGGConfig | AlexNetConfig) -> None:
        super().__init__()
        is_vgg = isinstance(config, VGGConfig)
        self.net, layers = nn.Module(), torchvision_features(config)
        for number, (start, stop) in enumerate(pairwise(LPIPS_SLICES["vgg" if is_vgg else "alex"]), start=1):
            part = nn.Sequential()
            for index in range(start, stop):
                part.add_module(str(index), layers[index])
            self.net.add_module(f"slice{number}", part)
        for level, width in enumerate(config.block_channels if is_vgg else config.channels):
            head = nn.Module()
            head.model = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{level}", head)
        self.scaling_layer = nn.Module()
        self.scaling_layer.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.scaling_layer.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = ((x - self.scaling_layer.shift) / self.scaling_layer.scale for x in (a, b))
        total = torch.zeros(len(a))
        for level, part in enumerate(self.net.children()):
            a, b = part(a), part(b)
            first, second = (x / (torch.sqrt((x**2).sum(dim=1, keepdim=True)) + 1e-10) for x in (a, b))
            total = total + getattr(self, f"lin{level}").model((first - second) ** 2).mean(dim=(1, 2, 3))
        return total
