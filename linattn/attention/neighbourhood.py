"""Softmax over a square around each token, as neighbourhood attention (arXiv 2204.07143) has it.

- At the border the square moves inwards and keeps its size; a picture smaller than it is read
  whole. A picture token reads all text besides.
- Queries in tiles of 8 x 8 share the keys that any of them reads; a mask hides the others. Of the
  products of a tile with 5 x 5 in 12 x 12 a sixth is needed, but a gather of each token's own keys
  would move as many numbers as the tile multiplies.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention.grid import Grid

TILE = 8


def near(q: Tensor, k: Tensor, v: Tensor, grid: Grid, side: int, scale: float) -> Tensor:
    """Compute the picture's outputs, (batch, picture, heads, head_dim), from all tokens."""
    rows, columns = _keys(grid.height, side, q.device), _keys(grid.width, side, q.device)
    queries = _tiles(grid.rows(q), len(rows), len(columns))
    keys, read = (_gathered(tensor, grid, rows, columns) for tensor in (k, v))
    mask = _mask(grid, side, rows, columns).repeat(q.shape[0], 1, 1, 1)
    out = F.scaled_dot_product_attention(queries, keys, read, mask, scale=scale)
    out = out.unflatten(0, (-1, len(rows), len(columns))).unflatten(4, (TILE, TILE))
    # from (batch, down, across, heads, TILE, TILE, head_dim) to (batch, height, width, ...)
    picture = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    return picture[:, : grid.height, : grid.width].flatten(1, 2)


def start(place: Tensor, size: int, side: int) -> Tensor:
    """Return where the square of each place begins, along an axis of that size."""
    return (place - side // 2).clamp(0, max(size - side, 0))


def pairs(grid: Grid, side: int) -> int:
    """Count the picture tokens that picture tokens read."""
    return grid.picture * min(side, grid.height) * min(side, grid.width)


def multiplied(grid: Grid, side: int) -> int:
    """Count the pairs of tokens that tiles multiply, text included."""
    tiles = math.ceil(grid.height / TILE) * math.ceil(grid.width / TILE)
    keys = _reach(grid.height, side) * _reach(grid.width, side) + grid.text
    return tiles * TILE**2 * keys


def _reach(size: int, side: int) -> int:
    """Return how many places of an axis a tile reads."""
    return min(TILE + side - 1, size)


def _keys(size: int, side: int, device: torch.device) -> Tensor:
    """Return the places that each tile of an axis reads, (tiles, reach)."""
    first = torch.arange(0, size, TILE, device=device) - side // 2
    reach = _reach(size, side)
    return first.clamp(0, size - reach)[:, None] + torch.arange(reach, device=device)


def _tiles(picture: Tensor, down: int, across: int) -> Tensor:
    """Cut (batch, height, width, heads, head_dim) into (tiles, heads, TILE^2, head_dim)."""
    height, width = picture.shape[1:3]
    filled = F.pad(picture, (0, 0, 0, 0, 0, across * TILE - width, 0, down * TILE - height))
    tiles = filled.unflatten(2, (across, TILE)).unflatten(1, (down, TILE))
    # (batch, down, across, heads, TILE, TILE, head_dim)
    return tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)


def _gathered(tokens: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Return what each tile reads, (tiles, heads, keys, head_dim), text first."""
    picture = grid.rows(tokens)[:, rows][:, :, :, columns]
    # from (batch, down, reach, across, reach, heads, head_dim)
    picture = picture.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)
    text = tokens[:, None, None, : grid.text].transpose(3, 4)
    text = text.expand(-1, len(rows), len(columns), -1, -1, -1)
    return torch.cat([text, picture], 4).flatten(0, 2)


def _mask(grid: Grid, side: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Say which of its keys each query of a tile reads, (tiles, 1, TILE^2, keys)."""
    down = _read(grid.height, side, rows)[:, None, :, None, :, None]
    across = _read(grid.width, side, columns)[None, :, None, :, None, :]
    mask = (down & across).flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return F.pad(mask, (grid.text, 0), value=True)[:, None]


def _read(size: int, side: int, keys: Tensor) -> Tensor:
    """Say along one axis which keys are in the square of a query, (tiles, TILE, reach)."""
    place = torch.arange(len(keys) * TILE, device=keys.device).view(-1, TILE, 1)
    first = start(place, size, side)
    return (keys[:, None] >= first) & (keys[:, None] < first + side)
