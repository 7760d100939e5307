"""PISA (arXiv 2602.01077): tiles that matter are read exactly, every other tile by its mean key.

- The picture is cut into tiles of tile x tile tokens. For each tile of queries the tiles of keys
  with the largest product of mean query and mean key are read token by token, a `density` of all,
  rounded up. Every other tile counts with its mean key, the sum of its values and its number of
  tokens in the denominator.
- order=1 adds the first-order term of those tiles, with one matrix for all of them: H is the sum of
  (key - its tile's mean key)^T value over the picture, and a query adds scale (q H) / N times the
  weights of its means, where N counts the picture's tokens. Its weights may be negative.
- threshold (LATTE, arXiv 2404.07519): a picture token drops keys of the picture whose probability
  is below this share of the largest that it reads, and means likewise, with the probability of one
  of their tokens. Text is never dropped. What is dropped is in no denominator.
- Text keys are always read, and text queries read everything (not in the paper).
- The release cuts the sequence into runs of 64 tokens, which are strips of a picture; tiles here
  are squares, partial at the right and lower border.
- Gradients flow through all but the choice of tiles.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention import routing
from linattn.attention.base import Operator, common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Option, Values, share, whole
from linattn_kernels import tile_attention
from linattn_kernels.check import MOST_SOFTMAX
from linattn_kernels.tile import tile_means, tile_sizes


def _order(value: object) -> int:
    if isinstance(value, bool) or value not in (0, 1):
        raise ValueError("0 (means alone) or 1 (and the first-order term)")
    return int(cast(int, value))


def _outer(k: Tensor, v: Tensor) -> Tensor:
    """Return the sum of key^T value over tokens, (batch, heads, head_dim, value_dim)."""
    return k.permute(0, 2, 3, 1) @ v.transpose(1, 2)


class Pisa(Operator):
    name = "pisa"
    aliases = ("piecewise", "block-sparse", "sparse")
    gist = "exact softmax on the best tiles, the others by their means"
    about = (
        "PISA reads the tiles of keys that matter most to a tile of queries token by token, and "
        "every other tile by its mean: nothing is dropped, and nothing has to be learned."
    )
    paper = "PISA, arXiv 2602.01077"
    text = "picture tokens read all text, text tokens read everything"
    hue = "#56b4e9"
    max_head_dim, core_in_float32 = MOST_SOFTMAX, False
    table = {
        "density": share(0.25),
        "tile": whole(4, least=1),
        "order": Option(1, _order),
        "threshold": share(None),
    }
    published = {"order": 1, "threshold": None}
    forms = {
        "tile3": {"density": 0.1, "tile": 3},
        "means": {"order": 0, "tile": 2},
        "threshold": {"threshold": 0.2},
    }

    def core(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, x: Tensor | None, values: Values
    ) -> Tensor:
        scale = self.shape.head_dim**-0.5
        with torch.no_grad():
            between = routing.score(q, k, grid, values.tile, scale)
        kept = routing.largest(between, routing.kept(grid, values.tile, values.density))
        out, of_means = tile_attention(
            q,
            k,
            v,
            kept,
            height=grid.height,
            width=grid.width,
            tile=values.tile,
            text=grid.text,
            scale=scale,
            means=True,
            threshold=values.threshold,
            return_share=True,
            backend=self.backend,
        )
        if values.order == 0:
            return out
        slope = self.slope(k, v, grid, values.tile) * (scale / grid.picture)
        term = (q.to(slope.dtype).transpose(1, 2) @ slope).transpose(1, 2)
        # A text token reads no mean, and its share is 0.
        of_means = of_means.transpose(1, 2).unsqueeze(3)
        return torch.addcmul(out.to(term.dtype), term, of_means).to(out.dtype)

    def slope(self, k: Tensor, v: Tensor, grid: Grid, tile: int) -> Tensor:
        """Return H, (batch, heads, head_dim, value_dim), in float32 at least."""
        dtype = common(k, v, least=torch.float32)
        k, v = (x[:, grid.text :].to(dtype) for x in (k, v))
        mean_k, mean_v = (tile_means(x, grid.height, grid.width, tile) for x in (k, v))
        sizes = tile_sizes(grid.height, grid.width, tile).to(mean_k)[:, None, None]
        # Of centred keys: the same less what their means give, which saves a copy of all keys.
        return _outer(k, v) - _outer(mean_k * sizes, mean_v)

    def tiles(self, grid: Grid, tile: int, device: torch.device) -> Tensor:
        """Return the number of each picture token's tile, (picture,), counted row by row."""
        token = torch.arange(grid.picture, device=device)
        row, column = token // grid.width // tile, token % grid.width // tile
        return row * -(-grid.width // tile) + column

    def dense(self, q: Tensor, k: Tensor, grid: Grid, values: Values) -> Tensor:
        # In float64, as the choice of tiles is: the mean score of two tiles is the score of their
        # means.
        text, dtype = grid.text, q.dtype
        score = scores(q.double(), k.double(), self.shape.head_dim**-0.5)
        number = self.tiles(grid, values.tile, q.device)
        member = F.one_hot(number, routing.tiles(grid, values.tile)).double()  # (picture, tiles)
        size = member.sum(0)
        of_mean = score[..., text:] @ (member / size)  # (batch, heads, tokens, tiles)
        reads = self.best((member / size).T @ of_mean[:, :, text:], grid, values)[:, :, number]
        reads_key = F.pad(reads[..., number], (text, 0, text, 0), value=True)
        reads_mean = F.pad(~reads, (0, 0, text, 0), value=False)
        largest = torch.maximum(
            score.masked_fill(~reads_key, -torch.inf).amax(3, keepdim=True),
            of_mean.masked_fill(~reads_mean, -torch.inf).amax(3, keepdim=True),
        )
        key, mean = (score - largest).exp(), (of_mean - largest).exp()
        if values.threshold is not None:
            reads_key[:, :, text:, text:] &= key[:, :, text:, text:] >= values.threshold
            reads_mean &= mean >= values.threshold
        key, mean = key * reads_key, mean * reads_mean
        all_means = (mean * size).sum(3, keepdim=True)
        denominator = key.sum(3, keepdim=True) + all_means
        picture = key[..., text:] + mean[..., number]
        if values.order == 1:
            offset = score[..., text:] - of_mean[..., number]  # scale q . (key - mean key)
            picture = picture + offset * all_means / grid.picture
        return (torch.cat([key[..., :text], picture], 3) / denominator).to(dtype)

    def best(self, between: Tensor, grid: Grid, values: Values) -> Tensor:
        """Say which tiles of keys each tile of queries reads, shaped like the scores of tiles."""
        order = (between / routing.QUANTUM).round().argsort(descending=True, stable=True)
        count = routing.kept(grid, values.tile, values.density)
        return torch.zeros_like(between, dtype=torch.bool).scatter_(3, order[..., :count], True)

    def cost(self, grid: Grid, values: Values) -> int:
        slope = 0
        if values.order:
            keys = grid.picture + routing.tiles(grid, values.tile)
            slope = (keys + grid.tokens) * self.shape.head_dim
        routed = routing.tiles(grid, values.tile) ** 2
        return (2 * self.pairs(grid, values) + slope + routed) * self.shape.channels

    def pairs(self, grid: Grid, values: Values) -> int:
        """Count keys and means that are read, all kept tiles as whole ones and none dropped."""
        count = routing.kept(grid, values.tile, values.density)
        read = min(count * values.tile**2, grid.picture)
        read += routing.tiles(grid, values.tile) - count
        return grid.text * grid.tokens + grid.picture * (grid.text + read)

    def uncounted(self, grid: Grid, values: Values) -> int | None:
        """Leave it to the operator's tests: partial tiles are multiplied as whole ones."""
        return None
