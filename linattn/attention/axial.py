"""Softmax over the token's own row and column.

- `along`: "both" is one softmax over row and column, in which the token itself counts once; "rows"
  and "columns" are one of the two, and rows are what Era3D (arXiv 2405.11616) reads across views;
  "alternate" is rows in even layers and columns in odd ones.
- The scores are those of one head at a time, N (height + width). At 16,384 tokens, 8 heads of 64,
  one core: .27 s of processor time, 4.5 s dense; all heads at once take twice as long.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from linattn.attention.base import Operator, after_text, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice

ALONG = ("both", "rows", "columns", "alternate")


class Axial(Operator):
    name = "axial"
    aliases = ("row-wise", "criss-cross")
    gist = "softmax along a token's row and column"
    about = (
        "Axial attention keeps softmax and lets a token look along its own row and column only, or "
        "along rows in one layer and along columns in the next."
    )
    paper = "Era3D, arXiv 2405.11616"
    text = "picture tokens read all text, text tokens read everything"
    hue = "#5e3c99"
    table = {"along": choice("both", ALONG)}
    forms = {"columns": {"along": "columns"}, "alternate": {"along": "alternate"}}

    def axes(self, values: Values) -> tuple[bool, bool]:
        """Say whether tokens read their row, and whether they read their column."""
        along = values.along
        if along == "alternate":
            along = ("rows", "columns")[self.shape.index % 2]
        return along != "columns", along != "rows"

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        row, column = self.axes(values)
        heads = zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True)
        picture = torch.stack([_read(*head, grid, row, column) for head in heads], 2)
        return after_text(q, k, v, grid, picture)

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        row, column = self.axes(values)
        token = torch.arange(-grid.text, grid.picture, device=q.device)
        y, x = token // grid.width, token % grid.width
        reads = row & (y[:, None] == y) | column & (x[:, None] == x)
        reads |= (token[:, None] < 0) | (token < 0)
        weight = scores(q, k, self.shape.head_dim**-0.5)
        return weight.masked_fill(~reads, -math.inf).softmax(-1)

    def pairs(self, grid: Grid, values: Values) -> int:
        row, column = self.axes(values)
        line = row * grid.width + column * grid.height - (row and column)
        return grid.picture * line + grid.text * (grid.tokens + grid.picture)

    def cost(self, grid: Grid, values: Values) -> int:
        return 2 * self.pairs(grid, values) * self.shape.channels

    def uncounted(self, grid: Grid, values: Values) -> Literal["pairs"]:
        return "pairs"  # where rows meet columns the token itself is multiplied twice


def _read(q: Tensor, k: Tensor, v: Tensor, grid: Grid, row: bool, column: bool) -> Tensor:
    """Read text, row and column of every picture token of a head, (batch, picture, head_dim)."""
    text_k, text_v = (tensor[:, None, : grid.text] for tensor in (k, v))
    q, k, v = (grid.rows(tensor).contiguous() for tensor in (q, k, v))  # (batch, y, x, head_dim)
    q = q * q.shape[3] ** -0.5
    weights = [q @ text_k.mT]
    if row:
        weights.append(q @ k.mT)  # (batch, y, x, keys)
    if column:
        weights.append(_columns(q, k, own=not row))
    sizes = [weight.shape[3] for weight in weights]
    of_text, *of_lines = torch.cat(weights, 3).softmax(3).split(sizes, 3)
    out = of_text @ text_v
    if row:
        out = out + of_lines[0] @ v
    if column:
        out = out + (of_lines[-1].transpose(1, 2) @ v.transpose(1, 2)).transpose(1, 2)
    return out.flatten(1, 2)


def _columns(q: Tensor, k: Tensor, own: bool) -> Tensor:
    """Return the scores of the tokens of every column, (batch, y, x, keys).

    Without `own` those of a token with itself are -inf: its row has them.
    """
    weight = q.transpose(1, 2) @ k.transpose(1, 2).mT  # (batch, x, y, keys)
    if not own:
        itself = torch.eye(k.shape[1], dtype=torch.bool, device=k.device)
        weight = weight.masked_fill_(itself, -math.inf)
    return weight.transpose(1, 2)
