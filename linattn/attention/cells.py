"""The cells of a pyramid: where they lie, which are near each other, what a block of queries reads.

- Queries go in blocks of 8 x 8, each with one list of keys: at every level the children of all that
  may be near the block's own cells. A mask says which query reads what of the list.
- At 16,384 tokens and radius 3 a list has 352 keys, and a query reads 135 of them in the mean.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention.grid import Grid

LOG_BLOCK = 3  # a block is a cell of this level, 8 x 8
BLOCK = 2**LOG_BLOCK
BLOCKS = 16  # at a time: their keys are 12 MB in float32 for 8 heads of 64
# What hides a key. -inf would give NaN to padding that reads nothing, and to its gradients.
HIDDEN = -1e30
WIDEST = 2**15  # a radius beyond any picture, whose square is still a whole number


@dataclass(frozen=True)
class Cells:
    """Lay cells over a picture: those of level l have sides of 2^l tokens."""

    grid: Grid  # where the picture's tokens lie
    radius: float  # two tokens of near 2 x 2 cells are closer than that

    @property
    def bound(self) -> int:
        """Return what squares of whole distances inside the radius are below."""
        return math.ceil(min(self.radius, WIDEST) ** 2)

    @property
    def reach(self) -> int:
        """Return how many cells away the farthest near one may lie."""
        return math.ceil((min(self.radius, WIDEST) + 1) / 2) - 1

    @property
    def top(self) -> int:
        """Return the first level above the tokens where all cells are near each other."""
        level = 1
        while not self.near(*(size - 1 for size in self.size(level))):
            level += 1
        return level

    def size(self, level: int) -> tuple[int, int]:
        """Return the rows and columns of cells."""
        return -(-self.grid.height // 2**level), -(-self.grid.width // 2**level)

    def near(self, dy, dx):
        """Say whether cells of one level are near that lie (dy, dx) cells apart."""
        return _gap(dy) ** 2 + _gap(dx) ** 2 < self.bound

    def with_means(self, tokens: Tensor) -> Tensor:
        """Append the means of all cells, level by level: (batch, tokens + cells, channels)."""
        flat = tokens.flatten(2)
        picture = self.grid.rows(flat).permute(0, 3, 1, 2)  # (batch, channels, height, width)
        means = [
            F.avg_pool2d(picture, 2**level, ceil_mode=True, count_include_pad=False)
            for level in range(1, self.top)
        ]
        return torch.cat([flat, *(mean.flatten(2).transpose(1, 2) for mean in means)], 1)

    def blocks(self, q: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows and columns of a few blocks, (blocks,), and their queries.

        The queries are (batch, blocks, 64, heads, head_dim), zero beyond the picture.
        """
        below, right = -self.grid.height % BLOCK, -self.grid.width % BLOCK
        queries = F.pad(self.grid.rows(q), (0, 0, 0, 0, 0, right, 0, below))
        queries = queries.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
        queries = queries.flatten(3, 4).flatten(1, 2)
        block = torch.arange(queries.shape[1], device=q.device)
        columns = self.size(LOG_BLOCK)[1]
        for some, piece in zip(block.split(BLOCKS), queries.split(BLOCKS, 1), strict=True):
            yield some // columns, some % columns, piece

    def picture(self, blocks: Tensor) -> Tensor:
        """Return blocks in the order of `blocks` as tokens of the picture, in their order."""
        rows = blocks.unflatten(2, (BLOCK, BLOCK)).unflatten(1, self.size(LOG_BLOCK))
        rows = rows.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (batch, rows, columns, ...)
        return rows[:, : self.grid.height, : self.grid.width].flatten(1, 2)

    def lists(self, rows: Tensor, columns: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return what blocks read: places in `with_means`, and what is added to their scores.

        These are (blocks, keys) and (blocks, queries, keys); text comes first.
        """
        text, start = self.grid.text, self.grid.text
        places = [torch.arange(text, device=like.device).expand(len(rows), -1)]
        added = [like.new_zeros(len(rows), BLOCK * BLOCK, text)]
        for level in range(self.top):
            down, across = self.children(level, rows, 0), self.children(level, columns, 1)
            places.append(start + self.place(level, down, across))
            weight = self.tokens(level, down, across).to(like.dtype).log().clamp(min=HIDDEN)
            read = self.reads(level, rows, columns, down, across)
            added.append(torch.where(read, weight[:, None], HIDDEN))
            start += math.prod(self.size(level))
        return torch.cat(places, 1), torch.cat(added, 2)

    def children(self, level: int, block: Tensor, axis: int) -> Tensor:
        """Return the children of what may be near the block along an axis, (blocks, children)."""
        parents = max(BLOCK >> (level + 1), 1)
        reach = min(self.reach, self.size(level + 1)[axis] - 1)
        first = (block * BLOCK >> (level + 1)) - reach
        child = torch.arange(2 * (parents + 2 * reach), device=block.device)
        return 2 * first[:, None] + child

    def place(self, level: int, down: Tensor, across: Tensor) -> Tensor:
        """Return the cells' places among those of their level, (blocks, cells).

        A cell outside the picture has the place of one inside.
        """
        rows, columns = self.size(level)
        down, across = down.clamp(0, rows - 1), across.clamp(0, columns - 1)
        return (down[:, :, None] * columns + across[:, None]).flatten(1)

    def tokens(self, level: int, down: Tensor, across: Tensor) -> Tensor:
        """Count the tokens of cells, (blocks, cells); none outside the picture."""
        sides = []
        for axis, cell in enumerate((down, across)):
            start, end = cell << level, (cell + 1) << level
            size = self.size(0)[axis]
            sides.append((end.clamp(max=size) - start.clamp(min=0)).clamp(min=0))
        return (sides[0][:, :, None] * sides[1][:, None]).flatten(1)

    def reads(
        self, level: int, rows: Tensor, columns: Tensor, down: Tensor, across: Tensor
    ) -> Tensor:
        """Say which queries read which cells, (blocks, queries, cells).

        Below the blocks' own level every block is like the first, which stands for all.
        """
        if level < LOG_BLOCK:
            rows, columns, down, across = (t[:1] for t in (rows, columns, down, across))
        dy, dx = self.offsets(level, rows, down), self.offsets(level, columns, across)
        read = self.near(*_outer(dy[0], dx[0]))
        if level:
            read = read & ~self.near(*_outer(dy[1], dx[1]))
        return read.flatten(3).flatten(1, 2)

    def offsets(self, level: int, block: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far cells' parents and the cells are from those of the block's queries.

        Both are (blocks, queries, cells), along one axis.
        """
        query = torch.arange(BLOCK, device=block.device)
        own = (block[:, None] * BLOCK + query) >> level
        parents = (own >> 1)[:, :, None] - (cell >> 1)[:, None]
        return parents, own[:, :, None] - cell[:, None]

    def pairs(self, level: int) -> int:
        """Count the pairs of a query and a cell of this level that it reads."""
        read = self._near(level + 1, children=True)
        return read - self._near(level, children=False) if level else read

    def _near(self, level: int, children: bool) -> int:
        """Count the pairs of a query and a near cell of a level, or such a cell's children."""
        down, across = (self._along(level, axis, children) for axis in (0, 1))
        return sum(
            rows * columns
            for dy, rows in down.items()
            for dx, columns in across.items()
            if self.near(dy, dx)
        )

    def _along(self, level: int, axis: int, children: bool) -> dict[int, int]:
        """Count pairs of a token and a cell, or its children, along an axis, by their distance."""
        size, below, cells = (self.size(each)[axis] for each in (0, level - 1, level))
        tokens = [min((cell + 1) << level, size) - (cell << level) for cell in range(cells)]
        worth = [min(2 * cell + 2, below) - 2 * cell if children else 1 for cell in range(cells)]
        far = min(self.reach, cells - 1)
        return {
            d: sum(tokens[cell] * worth[cell + d] for cell in range(max(0, -d), cells - max(0, d)))
            for d in range(-far, far + 1)
        }


def _gap(distance):
    """Return how far the closest tokens of two 2 x 2 cells are apart, along one axis."""
    return (2 * abs(distance) - 1) * (distance != 0)


def _outer(dy: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances down and across that meet in (blocks, 8, 8, rows, columns)."""
    return dy[:, :, None, :, None], dx[:, None, :, None]
