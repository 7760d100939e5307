"""Controls for claims about sparse softmax: other tokens, or another map of all of them.

- `kind="shifted"`: windows of side x side, moved by half a side in odd layers, as Swin's are
  (arXiv 2103.14030); windows at the border are cut. "strided": side x side tokens spread evenly
  over the picture, as MaxViT's grid (arXiv 2204.01697). "random": side x side tokens drawn by
  `seed` and the layer's number. All three read as many tokens, near, far and anywhere.
- Random sets are drawn by groups: as many queries, drawn alike, share one set. A set of its own for
  every query would be gathered key by key.
- "pooled": all queries read the keys and values of 2 x 2 cells, which are means and count as one
  key each. Cells at the border are means of fewer tokens. Quadratic, a quarter of softmax.
- "sigmoid" (arXiv 2409.04431): the weight is sigmoid(score - log N), text included, and nothing is
  normalised. Quadratic as softmax is; queries take turns, and a backward computes them again, so
  that no N x N tensor is held.
"""

import math
from collections import Counter
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from linattn.attention.base import Operator, after_text, attend, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice, whole
from linattn_kernels.tile import tile_means

KINDS = ("shifted", "strided", "random", "pooled", "sigmoid")
POOL = 2  # the side of a pooled cell
SCORES = 2**22  # of the sigmoid at a time, 16 MB in float32
LAYERS = 1000  # seeds of one value of `seed`


class Control(Operator):
    name = "control"
    aliases = ("swin", "strided", "random", "sigmoid")
    gist = "softmax over windows, strides or random tokens"
    about = (
        "Controls read as many tokens as a method does, but others: shifted windows, a grid spread "
        "over the picture or tokens drawn at random; or all of them, pooled or by a sigmoid."
    )
    paper = "control"
    text = "picture tokens read all text, text tokens read everything"
    hue = "#7f7f7f"
    table = {
        "kind": choice("shifted", KINDS),
        "side": whole(8, least=1),
        "seed": whole(0, least=0, scheduled=False),
    }
    forms = {
        "random": {"kind": "random", "side": 3, "seed": 1},
        "strided": {"kind": "strided", "side": 3},
        "sigmoid": {"kind": "sigmoid"},
    }

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        if values.kind == "sigmoid":
            return _sigmoid(q, k, v)
        if values.kind == "pooled":
            picture = self._pooled(q, k, v, grid)
        else:
            picture = self._grouped(q, k, v, grid, *self._groups(grid, values, q.device))
        return after_text(q, k, v, grid, picture)

    def _pooled(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        text, sides = grid.text, (grid.height, grid.width, POOL)
        k, v = (torch.cat([t[:, :text], tile_means(t[:, text:], *sides)], 1) for t in (k, v))
        return attend(q[:, text:], k, v, self.shape.head_dim**-0.5)

    def _grouped(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, queries: Tensor, keys: Tensor
    ) -> Tensor:
        """Let each group of queries read its group of keys and the text.

        The groups are (groups, tokens) of the picture, -1 where there is none.
        """
        text = torch.arange(grid.text, device=q.device).expand(len(keys), -1)
        keys = torch.cat([text, torch.where(keys < 0, -1, keys + grid.text)], 1)
        k, v = (tensor[:, keys.clamp(min=0)].flatten(0, 1) for tensor in (k, v))
        of_picture = q[:, queries.clamp(min=0) + grid.text]  # (batch, groups, tokens, heads, ...)
        mask = (keys >= 0)[:, None, None].repeat(len(q), 1, queries.shape[1], 1)
        out = attend(of_picture.flatten(0, 1), k, v, self.shape.head_dim**-0.5, mask)
        # Sorted, the places without a query come first.
        places = queries.flatten().argsort(stable=True)[queries.numel() - grid.picture :]
        return out.unflatten(0, (len(q), -1)).flatten(1, 2)[:, places]

    def _groups(self, grid: Grid, values: Values, device: torch.device) -> tuple[Tensor, Tensor]:
        if values.kind == "random":
            return self._random(grid, values, device)
        token = torch.arange(grid.picture, device=device).view(grid.height, grid.width)
        if values.kind == "strided":
            rows, columns = (min(values.side, size) for size in token.shape)
            token = F.pad(token, (0, -grid.width % columns, 0, -grid.height % rows), value=-1)
            spread = token.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
            groups = spread.permute(1, 3, 0, 2)  # (rows apart, columns apart, rows, columns)
        else:
            groups = self._windows(token, values)
        groups = groups.flatten(2).flatten(0, 1)
        return groups, groups

    def _windows(self, token: Tensor, values: Values) -> Tensor:
        """Return the tokens of each window, (down, across, rows, columns), -1 outside."""
        rows, columns = (min(values.side, 2 * size) for size in token.shape)
        above, left = self._ahead(rows), self._ahead(columns)
        below, right = -(above + token.shape[0]) % rows, -(left + token.shape[1]) % columns
        token = F.pad(token, (left, right, above, below), value=-1)
        return token.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2)

    def _ahead(self, side: int) -> int:
        """Return how much of the first window lies before the picture."""
        return side - side // 2 if self.shape.index % 2 else 0

    def _random(self, grid: Grid, values: Values, device: torch.device) -> tuple[Tensor, Tensor]:
        size, queries, keys = self._drawn(grid, values)
        groups = -(-grid.picture // size)
        queries = F.pad(queries, (0, groups * size - grid.picture), value=-1)
        keys = keys[torch.arange(groups * size) % grid.picture]
        return queries.view(groups, size).to(device), keys.view(groups, size).to(device)

    def _drawn(self, grid: Grid, values: Values) -> tuple[int, Tensor, Tensor]:
        """Return how many keys a query reads, and queries and keys in their random orders."""
        rng = torch.Generator().manual_seed(values.seed * LAYERS + self.shape.index)
        queries, keys = (torch.randperm(grid.picture, generator=rng) for _ in range(2))
        return min(values.side**2, grid.picture), queries, keys

    # The definition

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        weight = scores(q, k, self.shape.head_dim**-0.5)
        if values.kind == "sigmoid":
            return (weight - math.log(grid.tokens)).sigmoid()
        if values.kind == "pooled":
            return self._pooled_map(q, k, grid, weight)
        reads = F.pad(
            self.reads(grid, values).to(q.device), (grid.text, 0, grid.text, 0), value=True
        )
        return weight.masked_fill(~reads, -math.inf).softmax(-1)

    def _pooled_map(self, q: Tensor, k: Tensor, grid: Grid, weight: Tensor) -> Tensor:
        text, token = grid.text, torch.arange(grid.picture, device=q.device)
        cell = token // grid.width // POOL * grid.width + token % grid.width // POOL
        cells = (cell == cell.unique()[:, None]).to(q.dtype)
        cells = cells / cells.sum(1, keepdim=True)  # (cells, tokens)
        means = torch.einsum("cj,bjhd->bchd", cells, k[:, text:])
        pooled = scores(q[:, text:], means, self.shape.head_dim**-0.5)
        picture = torch.cat([weight[:, :, text:, :text], pooled], 3).softmax(-1)
        picture = torch.cat([picture[..., :text], picture[..., text:] @ cells], 3)
        return torch.cat([weight[:, :, :text].softmax(-1), picture], 2)

    def reads(self, grid: Grid, values: Values) -> Tensor:
        """Say for each pair of the picture whether the first token reads the second."""
        if values.kind == "random":
            size, queries, keys = self._drawn(grid, values)
            first = queries.argsort() // size * size
            return (keys.argsort() - first[:, None]) % grid.picture < size
        token = torch.arange(grid.picture)
        y = self._group(token // grid.width, grid.height, values)
        x = self._group(token % grid.width, grid.width, values)
        return (y[:, None] == y) & (x[:, None] == x)

    def _group(self, place, size: int, values: Values):
        """Return the number of a token's group along an axis, by its row or column."""
        if values.kind == "strided":
            return place % math.ceil(size / values.side)
        return (place + self._ahead(values.side)) // values.side

    # Costs

    def pairs(self, grid: Grid, values: Values) -> int:
        if values.kind == "sigmoid":
            return grid.tokens**2
        return self._picture_pairs(grid, values) + grid.text * (grid.tokens + grid.picture)

    def _picture_pairs(self, grid: Grid, values: Values) -> int:
        if values.kind == "pooled":
            return grid.picture * math.ceil(grid.height / POOL) * math.ceil(grid.width / POOL)
        if values.kind == "random":
            return grid.picture * min(values.side**2, grid.picture)
        return math.prod(
            sum(
                count**2
                for count in Counter(self._group(i, size, values) for i in range(size)).values()
            )
            for size in (grid.height, grid.width)
        )

    def cost(self, grid: Grid, values: Values) -> int:
        return 2 * self.pairs(grid, values) * self.shape.channels

    def uncounted(self, grid: Grid, values: Values) -> Literal["pairs", 0]:
        return 0 if values.kind in ("sigmoid", "pooled") else "pairs"


def _sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, tokens, heads, _ = q.shape
    size = max(1, SCORES // (batch * heads * tokens))
    pieces = [checkpoint(_weighed, piece, k, v, use_reentrant=False) for piece in q.split(size, 1)]
    return torch.cat(pieces, 1)


def _weighed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return sigmoid(score - log N) times the values, (batch, queries, heads, head_dim)."""
    weight = (scores(q, k, q.shape[3] ** -0.5) - math.log(k.shape[1])).sigmoid()
    return torch.einsum("bhij,bjhd->bihd", weight, v)
