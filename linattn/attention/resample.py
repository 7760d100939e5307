"""Averages and interpolation along axes as small matrices.

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


def resized(table: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolate (a, rows, columns, b) bilinearly to another number of rows and columns."""
    if table.shape[1:3] == (rows, columns):
        return table
    down = interpolation(table.shape[1], rows, table)
    across = interpolation(table.shape[2], columns, table)
    # (a, new rows, columns, b)
    table = along(down, table.flatten(2)).unflatten(2, table.shape[2:])
    return along(across, table.flatten(0, 1)).unflatten(0, table.shape[:2])


def along(matrix: Tensor, table: Tensor) -> Tensor:
    """Multiply (target, size) by (a, size, b), which gives (a, target, b)."""
    return torch.bmm(matrix.expand(table.shape[0], -1, -1), table)
