"""Averages and interpolation along one axis as small matrices.

- PyTorch's adaptive pooling and bilinear resizing have no deterministic backward on GPUs; a matrix
  product has, in every dtype, and its cost is nothing beside the attention.
- Same numbers as `adaptive_avg_pool1d` and `interpolate(mode="linear")`.
"""

import torch
from torch import Tensor


def averages(size: int, cells: int, like: Tensor) -> Tensor:
    """Return (cells, size), whose row i averages the i-th of `cells` equal cells.

    Those are positions floor(i size / cells) up to ceil((i + 1) size / cells).
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(size, device=like.device)
    start, end = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def interpolation(size: int, target: int, like: Tensor, corners: bool = False) -> Tensor:
    """Return (target, size), which interpolates `size` samples linearly to `target`.

    `corners` aligns the outermost samples.
    """
    position = torch.arange(target, device=like.device, dtype=like.dtype)
    source = torch.arange(size, device=like.device, dtype=like.dtype)
    step = (size - 1) / max(target - 1, 1) if corners else size / target
    position = position * step if corners else (position + 0.5) * step - 0.5
    distance = position.clamp(0, size - 1)[:, None] - source
    return (1 - distance.abs()).clamp(min=0)
