"""Tile attention in PyTorch: the kept tiles of a few tiles of queries at a time.

- Tokens of a tile lie together in a copy, so that a kept tile is copied in one piece. A piece of
  the work gathers GATHERED numbers of keys, 1 MB: less takes more calls, more leaves the L2.
- Text and means are read by all queries of a head: one product for all tiles of a piece.
- Backward computes each piece again: q, k, v and the means are all that is saved.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.tile import tile_sizes
from linattn_kernels.window_torch import (
    contiguous_zeros,
    heads_first,
    text_backward,
    text_forward,
)

GATHERED = 1 << 18


class _Tiling(NamedTuple):
    """Say how the tokens of a picture lie in tiles, and which tiles make a piece of the work."""

    height: int
    width: int
    tile: int

    @property
    def partial(self) -> bool:
        """Say whether tiles at the border have fewer tokens."""
        return bool(self.height % self.tile or self.width % self.tile)

    def split(self, picture: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (batch, height * width, heads, dim) as (batch x heads, tiles, tokens, dim).

        What a partial tile lacks is zero.
        """
        picture = picture.to(dtype).unflatten(1, (self.height, self.width))
        if self.partial:
            below, right = -self.height % self.tile, -self.width % self.tile
            picture = F.pad(picture, (0, 0, 0, 0, 0, right, 0, below))
        return self._cells(picture).flatten(4, 5).flatten(2, 3).flatten(0, 1).contiguous()

    def join(self, tiles: Tensor, picture: Tensor) -> Tensor:
        """Write what `split` made of a picture into that picture, and return it."""
        rows = picture.unflatten(1, (self.height, self.width))
        if not self.partial:
            cells = self._cells(rows)
            cells.copy_(tiles.view(cells.shape))
            return picture
        tall, wide = (-(-side // self.tile) * self.tile for side in (self.height, self.width))
        padded = tiles.new_empty(rows.shape[0], tall, wide, *rows.shape[3:])
        cells = self._cells(padded)
        cells.copy_(tiles.view(cells.shape))
        rows.copy_(padded[:, : self.height, : self.width])
        return picture

    def _cells(self, picture: Tensor) -> Tensor:
        """Return a view, (batch, heads, rows, columns, y, x, dim), of whole tiles."""
        cells = picture.unflatten(2, (-1, self.tile)).unflatten(1, (-1, self.tile))
        return cells.permute(0, 5, 1, 3, 2, 4, 6)

    def outside(self, like: Tensor) -> Tensor | None:
        """Return what is added to the scores of keys, (tiles, tokens): -inf beyond the border."""
        if not self.partial:
            return None
        inside = self.split(like.new_ones(1, self.height * self.width, 1, 1), like.dtype)
        return (
            torch.zeros_like(inside).masked_fill_(inside == 0, -math.inf).flatten(0, 1).flatten(1)
        )


def _pieces(heads: int, tiles: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of heads and of tiles: several heads, or some tiles of one.

    A tile of queries gathers `numbers` numbers of keys.
    """
    most = max(1, GATHERED // numbers)
    many, few = max(1, most // tiles), min(most, tiles)
    for head in range(0, heads, many):
        for tile in range(0, tiles, few):
            yield slice(head, min(head + many, heads)), slice(tile, min(tile + few, tiles))


class _Keys(NamedTuple):
    """Hold the keys of a call and say what a piece of the work reads of them.

    The tensors are (batch x heads, ..). `shared` keys are the text's and the means.
    """

    k: Tensor  # (.., tiles, tokens, dim)
    v: Tensor
    shared_k: Tensor  # (.., text + means, dim)
    shared_v: Tensor
    kept: Tensor  # (.., tiles, count)
    outside: Tensor | None  # (tiles, tokens)
    weights: Tensor | None  # (tiles,), the logarithms of the means' tokens
    text: int
    least: float

    def gathered(self, places: Tensor, tiles: Tensor) -> Tensor:
        """Return the kept tiles of a piece, (heads x tiles, kept tokens, dim)."""
        kept = tiles.flatten(0, 1).index_select(0, places)
        return kept.view(-1, self.near, tiles.shape[3])

    @property
    def near(self) -> int:
        return self.kept.shape[2] * self.k.shape[2]

    def places(self, heads: slice, tiles: slice) -> Tensor:
        """Return where a piece's kept tiles lie among those of all heads, in one dimension."""
        first = torch.arange(heads.start, heads.stop, device=self.k.device) * self.k.shape[1]
        return (self.kept[heads, tiles] + first[:, None, None]).flatten()

    def scores(self, q: Tensor, keys: Tensor, heads: slice, tiles: slice) -> Tensor:
        """Return the scores of a piece, (heads, tiles, tokens, kept tokens + text + means)."""
        near, size = self.near, q.shape[:3]
        scores = q.new_empty(*size, near + self.shared_k.shape[1])
        torch.bmm(q.flatten(0, 1), keys.transpose(1, 2), out=scores.flatten(0, 1)[..., :near])
        torch.bmm(
            q.flatten(1, 2),
            self.shared_k[heads].transpose(1, 2),
            out=scores.flatten(1, 2)[..., near:],
        )
        kept = self.kept[heads, tiles]
        if self.outside is not None:
            scores[..., :near] += self.outside[kept].flatten(2).unsqueeze(2)
        small = self._small(scores)
        if self.weights is not None:
            weights = self.weights.expand(*kept.shape[:2], -1).scatter(2, kept, -math.inf)
            scores[..., near + self.text :] += weights.unsqueeze(2)
        return scores if small is None else scores.masked_fill_(small, -math.inf)

    def _small(self, scores: Tensor) -> Tensor | None:
        """Return where a score is too far below the largest, which no kept tile's mean exceeds."""
        if self.least == -math.inf:
            return None
        small = scores < scores.amax(3, keepdim=True) + self.least
        small[..., self.near : self.near + self.text] = False
        return small


# The two functions
# ---------------------------------------------------------------------------------------------


@launch.without_autocast
def tile(q, k, v, mean_k, mean_v, kept, height, width, tile, text, scale, least, return_lse):
    batch, tokens, heads, _ = q.shape
    dtype = launch.acc_dtype(q.dtype)
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty((batch, heads, tokens) if return_lse else (0,), dtype=dtype)
    share = q.new_zeros((0,) if mean_k is None else (batch, heads, tokens), dtype=dtype)
    if text:
        text_lse = lse[:, :, :text] if return_lse else None
        text_forward(q[:, :text], k, v, scale, out[:, :text], text_lse)
    tiling = _Tiling(height, width, tile)
    keys = _keys(tiling, k, v, mean_k, mean_v, kept, text, least)
    queries = tiling.split(q[:, text:], dtype)
    result = keys.v.new_empty(keys.v.shape)
    rows = queries.new_empty(2, *queries.shape[:3], 1)  # log-sum-exp and share
    for piece in _pieces(*keys.kept.shape[:2], keys.near * queries.shape[3]):
        places = keys.places(*piece)
        scores = keys.scores(queries[piece] * scale, keys.gathered(places, keys.k), *piece)
        if return_lse:
            rows[0][piece] = scores.logsumexp(3, keepdim=True)
        p = torch.softmax(scores, 3, out=scores)
        if mean_k is not None:
            rows[1][piece] = p[..., keys.near + text :].sum(3, keepdim=True)
        near, shared = p.split([keys.near, p.shape[3] - keys.near], 3)
        read = result[piece]
        torch.bmm(
            near.flatten(0, 1), keys.gathered(places, keys.v), out=read.view(-1, *read.shape[2:])
        )
        read.view(read.shape[0], -1, read.shape[3]).baddbmm_(
            shared.flatten(1, 2), keys.shared_v[piece[0]]
        )
    tiling.join(result, out[:, text:])
    for total, picture in zip((lse, share), rows, strict=True):
        if total.numel():
            tiling.join(picture, total[:, :, text:].transpose(1, 2).unsqueeze(3))
    return out, lse, share


@launch.without_autocast
def tile_backward(
    grad_out, d_lse, d_share, q, k, v, mean_k, mean_v, kept, out, lse, share,
    height, width, tile, text, scale, least,
):  # fmt: skip
    # out, lse and share are None here: the Triton path alone saves them
    dtype, grad_dtype = launch.acc_dtype(q.dtype), grad_out.dtype
    dq, dk, dv = (contiguous_zeros(tensor, dtype) for tensor in (q, k, v))
    if text:
        text_d_lse = None if d_lse is None else d_lse[:, :, :text]
        text_q, text_grad, text_dq = q[:, :text], grad_out[:, :text], dq[:, :text]
        text_backward(text_grad, text_d_lse, text_q, k, v, scale, text_dq, dk, dv)
    tiling = _Tiling(height, width, tile)
    keys = _keys(tiling, k, v, mean_k, mean_v, kept, text, least)
    queries = tiling.split(q[:, text:], dtype)
    do = tiling.split(grad_out[:, text:], dtype)
    d_lse, d_share = (
        None if x is None else tiling.split(x[:, :, text:].transpose(1, 2).unsqueeze(3), dtype)
        for x in (d_lse, d_share)
    )
    d_queries, d_keys = torch.empty_like(queries), _zeros(keys)
    for piece in _pieces(*keys.kept.shape[:2], keys.near * queries.shape[3]):
        rows = (None if x is None else x[piece] for x in (d_lse, d_share))
        d_queries[piece] = _piece_backward(
            do[piece], *rows, queries[piece] * scale, keys, d_keys, piece
        )
    tiling.join(d_queries.mul_(scale), dq[:, text:])
    dk[:, text:] += tiling.join(d_keys.k, torch.empty_like(dk[:, text:]))
    dv[:, text:] += tiling.join(d_keys.v, torch.empty_like(dv[:, text:]))
    d_means = []
    for total, d_shared in ((dk, d_keys.shared_k), (dv, d_keys.shared_v)):
        d_shared = d_shared.unflatten(0, (-1, q.shape[2])).transpose(1, 2)
        total[:, :text] += d_shared[:, :text]
        d_means.append(d_shared[:, text:].contiguous() if mean_k is not None else q.new_empty(0))
    return dq.to(grad_dtype), dk.to(grad_dtype), dv.to(grad_dtype), *d_means


def _piece_backward(do, d_lse, d_share, q, keys: _Keys, d_keys: _Keys, piece) -> Tensor:
    """Return dq of a piece of the work, and add what it gives to the gradients of the keys."""
    heads, near = piece[0], keys.near
    places = keys.places(*piece)
    k, v = keys.gathered(places, keys.k), keys.gathered(places, keys.v)
    p = keys.scores(q, k, *piece).softmax(3)
    near_dp = torch.bmm(do.flatten(0, 1), v.transpose(1, 2)).unflatten(0, q.shape[:2])
    shared_dp = torch.bmm(do.flatten(1, 2), keys.shared_v[heads].transpose(1, 2))
    dp = torch.cat([near_dp, shared_dp.unflatten(1, q.shape[1:3])], 3)
    if d_share is not None:
        dp[..., near + keys.text :] += d_share
    delta = (p * dp).sum(3, keepdim=True)
    ds = dp.sub_(delta if d_lse is None else delta - d_lse).mul_(p)
    near_ds, near_p = ds[..., :near].flatten(0, 1), p[..., :near].flatten(0, 1)
    _add(d_keys.k, places, near_ds.transpose(1, 2) @ q.flatten(0, 1))
    _add(d_keys.v, places, near_p.transpose(1, 2) @ do.flatten(0, 1))
    shared_ds, shared_p = ds[..., near:].flatten(1, 2), p[..., near:].flatten(1, 2)
    d_keys.shared_k[heads] += shared_ds.transpose(1, 2) @ q.flatten(1, 2)
    d_keys.shared_v[heads] += shared_p.transpose(1, 2) @ do.flatten(1, 2)
    dq = (near_ds @ k).unflatten(0, q.shape[:2])
    return dq + (shared_ds @ keys.shared_k[heads]).view_as(dq)


def _add(total: Tensor, places: Tensor, gathered: Tensor) -> None:
    """Add gradients of gathered tiles to those of the tiles."""
    total.flatten(0, 1).index_add_(0, places, gathered.reshape(-1, *total.shape[2:]))


def _keys(tiling: _Tiling, k, v, mean_k, mean_v, kept, text: int, least: float) -> _Keys:
    dtype = launch.acc_dtype(k.dtype)
    return _Keys(
        k=tiling.split(k[:, text:], dtype),
        v=tiling.split(v[:, text:], dtype),
        shared_k=_shared(k[:, :text], mean_k, dtype),
        shared_v=_shared(v[:, :text], mean_v, dtype),
        kept=kept.flatten(0, 1),
        outside=tiling.outside(k.new_empty(0, dtype=dtype)),
        weights=None if mean_k is None else tile_sizes(*tiling).to(mean_k).log(),
        text=text,
        least=least,
    )


def _zeros(keys: _Keys) -> _Keys:
    """Return zeros for the gradients of the keys."""
    k, v, shared_k, shared_v = map(torch.zeros_like, keys[:4])
    return keys._replace(k=k, v=v, shared_k=shared_k, shared_v=shared_v)


def _shared(text: Tensor, means: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the text's keys or values and the means, (batch x heads, text + means, dim)."""
    shared = heads_first(text, dtype)
    if means is not None:
        shared = torch.cat([shared, heads_first(means, dtype)], 2)
    return shared.flatten(0, 1)
