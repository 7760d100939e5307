"""Softmax over all tokens, far ones through means of cells that grow with their distance.

- Cells of 2 x 2, 4 x 4, 8 x 8 tokens and so on lie side by side from the picture's top left corner;
  at the other borders they hold fewer. Two cells of one size are near if, drawn as 2 x 2, two of
  their tokens would lie less than `radius` apart: at radius 3 a cell and the eight around it.
- A query reads each token through the largest of the token's cells that is not near the query's own
  of that size, and by itself where all are near. So each token counts exactly once, tokens inside
  the radius are read exactly, and so are the others of the 2 x 2 cells that the disc cuts: 36
  tokens for the 25 of radius 3.
- A cell is one key and one value, the means of its tokens, and weighs as much as they are: the log
  of their number is added to its score.
- At radius 3 a query reads 27 cells of each size: N log N in all, chosen by place alone.
"""

import torch
from torch import Tensor

from linattn.attention.base import Operator, after_text, attend, scores
from linattn.attention.cells import Cells
from linattn.attention.grid import Grid
from linattn.attention.options import Values, number


class Pyramid(Operator):
    name = "pyramid"
    aliases = ("multipole", "multiscale", "hierarchical")
    gist = "softmax, far tokens by means of growing cells"
    about = (
        "The pyramid keeps softmax and reads every token: near ones exactly, others through means "
        "of cells that grow with their distance, each weighing as many tokens as it has."
    )
    paper = "linattn"
    text = "picture tokens read all text, text tokens read everything"
    hue = "#8c6d1f"
    table = {"radius": number(3, above=0)}
    published = {"radius": 3}
    forms = {"wide": {"radius": 4.5}}

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        scale, cells = self.shape.head_dim**-0.5, Cells(grid, values.radius)
        every_k, every_v = cells.with_means(k), cells.with_means(v)
        blocks = [
            _read(queries, every_k, every_v, *cells.lists(rows, columns, q), scale)
            for rows, columns, queries in cells.blocks(q)
        ]
        return after_text(q, k, v, grid, cells.picture(torch.cat(blocks, 1)))

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        text, scale = grid.text, self.shape.head_dim**-0.5
        weight = scores(q, k, scale)
        picture = weight[:, :, text:, text:]
        for level in range(1, max(grid.height, grid.width).bit_length()):
            dy, dx = _apart(grid, level, q.device)
            gap = (2 * dy - 1).clamp(min=0).double() ** 2 + (2 * dx - 1).clamp(min=0) ** 2
            alike = ((dy == 0) & (dx == 0)).to(q.dtype)
            means = torch.einsum("ij,bjhd->bihd", alike / alike.sum(1, keepdim=True), k[:, text:])
            coarse = scores(q[:, text:], means, scale)
            picture = torch.where(gap < float(values.radius) ** 2, picture, coarse)
        picture = torch.cat([weight[:, :, text:, :text], picture], 3)
        return torch.cat([weight[:, :, :text], picture], 2).softmax(-1)

    def pairs(self, grid: Grid, values: Values) -> int:
        cells = Cells(grid, values.radius)
        picture = sum(cells.pairs(level) for level in range(cells.top))
        return picture + grid.text * (grid.tokens + grid.picture)

    def cost(self, grid: Grid, values: Values) -> int:
        return 2 * self.pairs(grid, values) * self.shape.channels

    def uncounted(self, grid: Grid, values: Values) -> None:
        return None  # a block multiplies keys that only some of its queries read


def _read(
    q: Tensor, every_k: Tensor, every_v: Tensor, index: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Read for every block the keys of its list, (batch, blocks, queries, heads, head_dim)."""
    k, v = (tensor.index_select(1, index.flatten()) for tensor in (every_k, every_v))
    # (batch x blocks, keys, heads, head_dim)
    k, v = (t.unflatten(1, index.shape).flatten(0, 1).unflatten(2, q.shape[3:]) for t in (k, v))
    mask = mask.unsqueeze(1).repeat(len(q), 1, 1, 1)  # (batch x blocks, 1, queries, keys)
    return attend(q.flatten(0, 1), k, v, scale, mask).unflatten(0, q.shape[:2])


def _apart(grid: Grid, level: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many cells of a level two tokens are apart, down and across."""
    token = torch.arange(grid.picture, device=device)
    sides = (token // grid.width // 2**level, token % grid.width // 2**level)
    dy, dx = ((side[:, None] - side).abs() for side in sides)  # (tokens, tokens)
    return dy, dx
