"""EfficientNet-Lite0 without its classifier (arXiv 1905.11946, the Lite variant of its authors).

- Batch norm is folded into the convolutions, which changes features by 1e-5 of their size.
- Lite has no squeeze-and-excitation, and ReLU6 in the place of Swish.
- Padding is TensorFlow's: of an odd number of pixels the last side gets one more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 128  # pixels of its input: at 224 a picture takes 3.4 times as long
CHANNELS = 1280  # of its features
PATCH_STAGE = 5  # whose features of patches lie 8 x 8; the last stage has 4 x 4


@dataclass(frozen=True)
class Stage:
    kernel: int
    stride: int  # of its first block
    expand: int
    channels: int
    blocks: int


STEM = 32
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
PATCH_BLOCKS = sum(stage.blocks for stage in STAGES[:PATCH_STAGE])


class Convolution(nn.Conv2d):
    """A convolution whose output is a `stride`-th of its input's side, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(
            reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            missing = max(kernel - (side - 1) % stride - 1, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """An inverted residual: widen, convolve each channel alone, narrow."""

    def __init__(self, kernel: int, stride: int, expand: int, channels: int, out: int):
        super().__init__()
        wide = channels * expand
        self.expand = Convolution(channels, wide, 1) if expand > 1 else None
        self.depthwise = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return x + hidden if self.residual else hidden


class Eye(nn.Module):
    """Turn pictures into the features before the classifier."""

    num_features = CHANNELS
    patch_channels = STAGES[PATCH_STAGE - 1].channels

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        self.blocks = nn.Sequential(*_blocks())
        self.head = Convolution(STAGES[-1].channels, CHANNELS, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return features (batch, 1280) of pictures (batch, 3, height, width) in [0, 1]."""
        x = F.relu6(self.head(self.blocks(self._stemmed(pictures))))  # (batch, 1280, 4, 4)
        return x.mean((2, 3))

    def patches(self, pictures: Tensor) -> Tensor:
        """Return features of patches (batch, 112, 8, 8) of such pictures."""
        return self.blocks[:PATCH_BLOCKS](self._stemmed(pictures))

    def _stemmed(self, pictures: Tensor) -> Tensor:
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        return F.relu6(self.stem((255 * pictures - 127) / 128))  # (batch, 32, 64, 64)


def _blocks() -> Iterator[Block]:
    channels = STEM
    for stage in STAGES:
        for number in range(stage.blocks):
            stride = 1 if number else stage.stride
            yield Block(stage.kernel, stride, stage.expand, channels, stage.channels)
            channels = stage.channels


@torch.no_grad()
def features(eye: Eye, pictures: Tensor, batch: int = 64) -> Tensor:
    """Return the features of pictures in float64 on the CPU, (pictures, 1280).

    Args:
        eye: the network
        pictures: (pictures, 3, height, width) in [0, 1]
        batch: pictures of one forward
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(
            f"pictures are {tuple(pictures.shape)}, and the eye sees (pictures, 3, height, width): "
            "repeat the channel of grey ones, and leave out an alpha channel"
        )
    device = next(eye.parameters()).device
    seen = [eye(chunk.to(device).float()).double().cpu() for chunk in pictures.split(batch)]
    return torch.cat(seen)
