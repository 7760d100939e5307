"""Tiles of queries, and the windows of keys around them: the layout of a sum over a disc.

- A tile has 4 x 8 queries: at radius 3 one meets 96 keys for the 25 of its disc (at 8 x 8, 144).
- A column of tiles is copied once with the keys that it reaches on both sides, clipped at the
  border; its windows are overlapping views of that copy.
- All columns lie one below another with rows of zeros between them, so that one batched product
  serves them. Tiles of those rows are computed too, and `join` drops them.
- Everything is a slice, a pad or a view: gradients are deterministic on every device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention.grid import Grid
from linattn_kernels.reference import inside

ROWS, COLUMNS = 4, 8  # of a tile


@dataclass(frozen=True)
class Windows:
    """Say which tile of the picture's queries reads which rectangle of its keys."""

    grid: Grid  # how the tokens lie
    radius: float  # a token reads those at distances strictly below it

    @property
    def far(self) -> int:
        """Return the farthest whole distance strictly inside the radius, at most the picture's."""
        return min(math.ceil(self.radius), max(self.grid.height, self.grid.width)) - 1

    @property
    def down(self) -> int:
        """Count the tiles of a column, those of the rows below it included."""
        return -(-self.grid.height // ROWS) - (-2 * self.far // ROWS)

    @property
    def starts(self) -> range:
        """Return where the columns of tiles begin."""
        return range(0, self.grid.width, COLUMNS)

    @property
    def reach(self) -> list[slice]:
        """Return the picture's columns that each column of tiles reads, all equally many."""
        size = min(COLUMNS + 2 * self.far, self.grid.width)
        firsts = (max(0, min(start - self.far, self.grid.width - size)) for start in self.starts)
        return [slice(first, first + size) for first in firsts]

    def split(self, tokens: Tensor) -> Tensor:
        """Return the queries of each tile of (batch, picture, dim).

        They are (columns, batch, tiles, queries, dim).
        """
        picture = tokens.unflatten(1, (self.grid.height, self.grid.width))
        if right := -self.grid.width % COLUMNS:
            picture = F.pad(picture, (0, 0, 0, right))
        rows = self._stacked(picture, [slice(start, start + COLUMNS) for start in self.starts])
        tiles = torch.cat(rows).unflatten(0, (-1, len(tokens), self.down, ROWS))
        return tiles.flatten(3, 4)

    def windows(self, tokens: Tensor) -> Tensor:
        """Return the keys that each tile of (batch, picture, dim) reads.

        They are (columns x batch x tiles, keys, dim), views of a copy.
        """
        rows = self._stacked(tokens.unflatten(1, (self.grid.height, self.grid.width)), self.reach)
        zeros = rows[0].new_zeros(self.far, *rows[0].shape[1:])
        stacked = torch.cat([zeros, *rows, zeros])  # (far + columns x batch x height + far, ...)
        return stacked.unfold(0, ROWS + 2 * self.far, ROWS).permute(0, 3, 1, 2).flatten(1, 2)

    def _stacked(self, picture: Tensor, columns: list[slice]) -> list[Tensor]:
        """Return columns of each picture, (height, width, dim), and the zeros below each."""
        below = self.down * ROWS - self.grid.height
        zeros = picture.new_zeros(below, columns[0].stop - columns[0].start, picture.shape[3])
        return [part for near in columns for one in picture for part in (one[:, near], zeros)]

    def join(self, heads: list[Tensor]) -> Tensor:
        """Return what `split` made of each head as (batch, picture, heads, dim)."""
        tiles = -(-self.grid.height // ROWS)
        pictures = [
            head[:, :, :tiles].unflatten(3, (ROWS, COLUMNS)).permute(1, 2, 3, 0, 4, 5)
            for head in heads
        ]
        picture = torch.stack(pictures, 5).flatten(3, 4).flatten(1, 2)
        return picture[:, : self.grid.height, : self.grid.width].flatten(1, 2)

    def masks(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 for the pairs inside the disc, and what hides the others from a softmax.

        Both are (columns x batch x tiles, queries, keys). A query outside of the picture reads all,
        since a row without any key would be NaN.
        """
        query_y, key_y = self._rows(like.device)
        query_x, key_x = self._columns(like.device)
        dy = query_y[0][:, None] - key_y[0]  # (rows, rows of keys), the same in every tile
        dx = query_x[:, :, None] - key_x[:, None]  # (columns of tiles, columns, columns of keys)
        disc = inside(dy[:, None, :, None], dx[:, None, :, None], self.radius, "disc")
        disc = disc.flatten(3).flatten(1, 2)[:, None, None]  # (columns, 1, 1, queries, keys)
        keys = ((key_y >= 0) & (key_y < self.grid.height)).repeat_interleave(key_x.shape[1], 1)
        inner = (query_y < self.grid.height)[..., None] & (query_x < self.grid.width)[:, None, None]
        inner = inner.flatten(2)[:, None, :, :, None]  # (columns, 1, tiles, queries, 1)
        near = disc & keys[:, None] & inner  # (columns, 1, tiles, queries, keys)
        hidden = torch.zeros_like(near, dtype=like.dtype).masked_fill_(inner & ~near, -math.inf)
        near, hidden = (
            mask.expand(-1, batch, -1, -1, -1).flatten(0, 2) for mask in (near.to(hidden), hidden)
        )
        return near, hidden

    def _rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows of each tile's queries and keys, (tiles, rows)."""
        query = torch.arange(self.down * ROWS, device=device).view(-1, ROWS)
        return query, query[:, :1] + torch.arange(-self.far, ROWS + self.far, device=device)

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the columns of the queries and keys of each column of tiles."""
        query = torch.arange(len(self.reach) * COLUMNS, device=device).view(-1, COLUMNS)
        key = [torch.arange(near.start, near.stop, device=device) for near in self.reach]
        return query, torch.stack(key)


def near_pairs(grid: Grid, radius: float) -> int:
    """Count the pairs of picture tokens at distances strictly below the radius."""
    far = min(math.ceil(radius) - 1, grid.height - 1)
    near = 0
    for dy in range(-far, far + 1):
        width = _half_chord(dy, radius, grid.width)
        # Pairs dx apart in a row of w tokens: w - |dx|; summed over |dx| <= width.
        near += (grid.height - abs(dy)) * (grid.width * (2 * width + 1) - width * (width + 1))
    return near


def _half_chord(dy: int, radius: float, width: int) -> int:
    """Return the largest dx with dy^2 + dx^2 < radius^2, at most width - 1."""
    dx = 0
    while dx + 1 < width and dy * dy + (dx + 1) ** 2 < radius * radius:
        dx += 1
    return dx
