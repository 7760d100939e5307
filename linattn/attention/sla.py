"""SLA (arXiv 2509.24006): softmax on the tiles that matter, linear attention for what it misses.

- For each tile of queries the tiles of keys with the largest product of mean query and mean key are
  read by softmax, a `density` of all, rounded up, and every other tile is not. The release takes
  the mean key off all keys before that product: it moves all scores of a query alike and changes no
  choice, so it is left out here.
- mix="projection" (SLA): linear attention over all tokens of the picture, with softmax over the
  channels of a head as its features, passes a projection of head_dim x head_dim that all heads
  share and is added. The projection starts at zero: the student starts as its exact tiles.
- mix="ratio" (SLA2, arXiv 2602.12675): a x softmax + (1 - a) x linear attention over the tiles that
  are not read exactly, with a = sigmoid(ratio) learned for each head, 0.88 at first. The paper has
  a ratio for each tile of queries, which ties weights to one size of picture, and learns what the
  tiles are chosen by; here the choice is SLA's.
- Text keys are always read exactly, and text queries read everything by softmax (not in the paper).
- The features are positive, so that a denominator needs no epsilon (the release adds 1e-5).
- Gradients flow through all but the choice of tiles.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention import routing
from linattn.attention.base import LayerShape, Operator, common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice, share, whole
from linattn_kernels import linear_attention, tile_attention
from linattn_kernels.check import MOST_SOFTMAX

RATIO = 2.0  # at the start: sigmoid(2) = 0.88 of the output is softmax


class Sla(Operator):
    name = "sla"
    aliases = ("sparse-linear", "block-sparse", "sparse")
    gist = "exact softmax on the best tiles, and a linear read beside it"
    about = (
        "SLA reads the tiles of keys that matter most to a tile of queries by softmax and adds a "
        "linear read, which a learned projection lets in; it learns what the missing tiles held."
    )
    paper = "SLA, arXiv 2509.24006"
    text = "picture tokens read all text by softmax, text tokens read everything by softmax"
    hue = "#e0508a"
    max_head_dim, core_in_float32 = MOST_SOFTMAX, False
    has_map = False  # its projection mixes the channels of a head
    table = {
        "density": share(0.05),
        "tile": whole(4, least=1),
        "mix": choice("projection", ("projection", "ratio")),
    }
    published = {"density": 0.05, "mix": "projection"}
    forms = {"tile3": {"density": 0.2, "tile": 3}, "ratio": {"density": 0.1, "mix": "ratio"}}

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.projection: nn.Linear | None = None
        self.ratio: nn.Parameter | None = None
        if self.values.mix == "ratio":
            self.ratio = nn.Parameter(torch.full((shape.heads,), RATIO))
            return
        self.projection = nn.Linear(shape.head_dim, shape.head_dim)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        kept = self.kept(q, k, grid, values)
        tile, text = min(values.tile, max(grid.height, grid.width)), grid.text
        sides = {"height": grid.height, "width": grid.width, "tile": tile, "text": text}
        # without the log-sum-exp
        out = cast(Tensor, tile_attention(q, k, v, kept, **sides, backend=self.backend))
        dtype = common(q, least=torch.float32)
        query, key, value = (tensor[:, text:].to(dtype) for tensor in (q, k, v))
        query, key = query.softmax(3), key.softmax(3)
        if self.projection is not None:
            linear = linear_attention(
                query, key, value, feature_map="identity", eps=0.0, backend=self.backend
            )
            added = self.projection(cast(Tensor, linear).to(self.projection.weight.dtype))
            return out + _below_text(added, grid).to(out.dtype)
        if kept.shape[2] == kept.shape[3]:  # all tiles are read exactly
            return out
        picture = _rest(query, key, value, kept, grid, tile)
        picture = torch.lerp(picture, out[:, text:].to(dtype), self.part(dtype))
        return torch.cat([out[:, :text], picture.to(out.dtype)], 1)

    def part(self, dtype: torch.dtype) -> Tensor:
        """Return the share of the softmax for each head, (heads, 1)."""
        return cast(Tensor, self.ratio).to(dtype).sigmoid()[:, None]

    def kept(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        """Return the tiles of keys that each tile of queries reads exactly."""
        with torch.no_grad():
            between = routing.score(q, k, grid, values.tile, self.shape.head_dim**-0.5)
        return routing.largest(between, routing.kept(grid, values.tile, values.density))

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        """Return the map of the softmax, and of the linear read where a ratio mixes them.

        What a projection changes is no map of tokens: `defined` adds it.
        """
        score = scores(q, k, self.shape.head_dim**-0.5)
        reads = self._reads(q, k, grid, values)  # (batch, heads, picture, picture)
        exact = F.pad(reads, (grid.text, 0, grid.text, 0), value=True)
        weights = score.masked_fill(~exact, -torch.inf).softmax(-1)
        if self.ratio is None or reads.all():
            return weights
        rest = _map(q, k, grid) * ~reads
        rest = F.pad(rest / rest.sum(-1, keepdim=True), (grid.text, 0))
        part = self.ratio.to(q.dtype).sigmoid()[:, None, None]
        picture = part * weights[:, :, grid.text :] + (1 - part) * rest
        return torch.cat([weights[:, :, : grid.text], picture], 2)

    def _reads(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        """Say which pairs of picture tokens lie in tiles that are read exactly."""
        token = torch.arange(grid.picture, device=q.device)
        row, column = token // grid.width // values.tile, token % grid.width // values.tile
        number = row * -(-grid.width // values.tile) + column
        member = F.one_hot(number).double()  # (picture, tiles)
        mean = member / member.sum(0)
        score = scores(q.double(), k.double(), self.shape.head_dim**-0.5)
        between = mean.T @ score[:, :, grid.text :, grid.text :] @ mean  # (..., tiles, tiles)
        order = (between / routing.QUANTUM).round().argsort(descending=True, stable=True)
        count = routing.kept(grid, values.tile, values.density)
        reads = torch.zeros_like(between, dtype=torch.bool).scatter_(3, order[..., :count], True)
        return reads[:, :, number][..., number]

    def defined(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        """Compute the map @ v and the projection of the linear read."""
        out = super().defined(q, k, v, grid, x, values)
        if self.projection is None:
            return out
        weights = _map(q, k, grid)
        weights = weights / weights.sum(-1, keepdim=True)
        read = torch.einsum("bhij,bjhd->bihd", weights, v[:, grid.text :])
        weight, bias = (p.to(out.dtype) for p in self.projection.parameters())
        return out + _below_text(torch.einsum("bihd,ed->bihe", read, weight) + bias, grid)

    def cost(self, grid: Grid, values: Values) -> int:
        tiles, head_dim = routing.tiles(grid, values.tile), self.shape.head_dim
        linear = 2 * grid.picture * head_dim  # a state, and what the queries read of it
        added = tiles**2 * head_dim if values.mix == "ratio" else grid.picture * head_dim
        return (2 * self.pairs(grid, values) + tiles**2 + linear + added) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        """Count the keys that softmax reads, all kept tiles as whole ones."""
        read = routing.kept(grid, values.tile, values.density) * values.tile**2
        return grid.text * grid.tokens + grid.picture * (grid.text + min(read, grid.picture))

    def uncounted(self, grid: Grid, values: Values) -> None:
        """Leave it to the operator's tests: partial tiles are multiplied as whole ones."""
        return None


def _below_text(picture: Tensor, grid: Grid) -> Tensor:
    """Return (batch, picture, heads, dim) with zeros for the text before it."""
    return F.pad(picture, (0, 0, 0, 0, grid.text, 0))


def _map(q: Tensor, k: Tensor, grid: Grid) -> Tensor:
    """Return the products of the picture's features, (batch, heads, picture, picture)."""
    q, k = (tensor[:, grid.text :].softmax(3) for tensor in (q, k))
    return torch.einsum("bihd,bjhd->bhij", q, k)


# The tiles that are not read exactly
# ---------------------------------------------------------------------------------------------


def _rest(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, grid: Grid, tile: int) -> Tensor:
    """Return the linear read of all tiles but those kept, (batch, picture, heads, head_dim)."""
    value = F.pad(value, (0, 1), value=1)  # its last channel sums up to the denominator
    key, value = _tiled(key, grid, tile), _tiled(value, grid, tile)
    query = _tiled(query, grid, tile, fill=1.0)  # of zeros the denominator would be zero
    states = key.mT @ value  # (batch, heads, tiles, head_dim, head_dim + 1)
    away = states.new_ones(*kept.shape[:3], kept.shape[2]).scatter_(3, kept, 0)
    read = query @ (away @ states.flatten(3)).view_as(states)
    return _joined(read[..., :-1] / read[..., -1:], grid, tile)


def _tiled(tokens: Tensor, grid: Grid, tile: int, fill: float = 0.0) -> Tensor:
    """Return the tokens of each tile, (batch, heads, tiles, tokens, dim).

    `fill` stands where a tile goes beyond the picture.
    """
    picture = tokens.unflatten(1, (grid.height, grid.width))
    beyond = (0, 0, 0, 0, 0, -grid.width % tile, 0, -grid.height % tile)
    picture = F.pad(picture, beyond, value=fill)
    tiles = picture.unflatten(2, (-1, tile)).unflatten(1, (-1, tile))
    return tiles.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(2, 3)


def _joined(tiles: Tensor, grid: Grid, tile: int) -> Tensor:
    """Return what `_tiled` made of a picture's tokens as those tokens."""
    across = -(-grid.width // tile)
    picture = tiles.unflatten(3, (tile, tile)).unflatten(2, (-1, across))
    picture = picture.permute(0, 2, 4, 3, 5, 1, 6).flatten(3, 4).flatten(1, 2)
    return picture[:, : grid.height, : grid.width].flatten(1, 2)
