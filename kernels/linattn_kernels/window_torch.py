"""Window attention in PyTorch: tiles of 8 x 8 queries, a column of tiles a call.

- A tile reads the rectangle its windows can reach; a mask removes what lies outside a window or the
  picture.
- Keys and values of a column are copied once; its tiles read overlapping windows of that copy. At
  16,384 tokens, 8 heads of 64, radius 8, one core: .31 s against 7.1 s dense (a call a tile: .9 s;
  written with matmuls: .45 s).
- Backward computes each tile again: q, k, v are all that is saved, and gradients add up in place.
  Autograd over the slices would fill a full-sized gradient with zeros for each of them.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.reference import inside

TILE = 8
SCORES = 1 << 22  # scores at a time where they are written out, 16 MB in float32


class _Plan:
    """Which tiles read what; everything here depends on sizes only."""

    def __init__(
        self,
        height: int,
        width: int,
        radius: float,
        shape: str,
        extra: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.height, self.width, self.radius, self.shape, self.extra = (
            height,
            width,
            radius,
            shape,
            extra,
        )
        self.dtype, self.device = dtype, device
        self.far = math.ceil(radius) - 1  # the farthest whole distance strictly inside
        self.tiles = -(-height // TILE)  # in a column
        whole = TILE + 2 * self.far >= height  # every tile reads all rows
        self.window = height if whole else TILE + 2 * self.far  # rows a tile reads
        self.step = 0 if whole else TILE  # rows from one window to the next
        self.above = 0 if whole else self.far  # empty rows above the picture
        self.masks: dict[tuple[int, int, int], Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """The queries' and the keys' columns, and the mask to add to the scores, (tiles, 1,
        queries, extra + keys).
        """
        for start in range(0, self.width, TILE):
            end = min(start + TILE, self.width)
            first, last = max(start - self.far, 0), min(end + self.far, self.width)
            yield (
                slice(start, end),
                slice(first, last),
                self._mask(end - start, start - first, last - first),
            )

    def _mask(self, queries: int, before: int, keys: int) -> Tensor:
        if (queries, before, keys) not in self.masks:
            device = self.device
            # (tiles, rows of queries)
            place = torch.arange(self.tiles * TILE, device=device).view(-1, TILE)
            seen = torch.arange(self.tiles, device=device)[:, None] * self.step - self.above
            seen = seen + torch.arange(self.window, device=device)  # (tiles, rows of keys)
            dy = place[:, :, None] - seen[:, None]
            dx = torch.arange(before, before + queries, device=device)[:, None] - torch.arange(
                keys, device=device
            )
            allowed = inside(
                dy[:, :, None, :, None], dx[None, None, :, None, :], self.radius, self.shape
            )
            allowed &= ((seen >= 0) & (seen < self.height))[:, None, None, :, None]
            # rows beyond the picture: anything but nothing
            allowed |= (place >= self.height)[:, :, None, None, None]
            mask = allowed.flatten(3).flatten(1, 2).unsqueeze(1)
            mask = torch.zeros(mask.shape, dtype=self.dtype, device=device).masked_fill_(
                ~mask, -math.inf
            )
            self.masks[queries, before, keys] = F.pad(mask, (self.extra, 0))
        return self.masks[queries, before, keys]

    def queries(self, rows: Tensor) -> Tensor:
        """A column (batch, height, w, heads, dim) as (tiles, batch x heads, 8 w, dim)."""
        rows = F.pad(rows.to(self.dtype), (0, 0, 0, 0, 0, 0, 0, self.tiles * TILE - self.height))
        rows = rows.unflatten(1, (self.tiles, TILE))
        return rows.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)

    def rows(self, queries: Tensor, batch: int) -> Tensor:
        """The way back."""
        rows = queries.unflatten(1, (batch, -1)).unflatten(3, (TILE, -1)).permute(1, 0, 3, 4, 2, 5)
        return rows.flatten(1, 2)[:, : self.height]

    def padded(self, rows: Tensor) -> Tensor:
        """A column of keys (batch, height, w, heads, dim) as (batch x heads, padded height, w,
        dim).
        """
        batch, height, width, heads, dim = rows.shape
        tall = self.step * (self.tiles - 1) + self.window
        out = rows.new_zeros(batch, heads, tall, width, dim, dtype=self.dtype)
        out[:, :, self.above : self.above + height] = rows.permute(0, 3, 1, 2, 4)
        return out.flatten(0, 1)

    def windows(self, rows: Tensor, extra: Tensor) -> Tensor:
        """(tiles, batch x heads, extra + keys, dim): overlapping views of the padded column, copied
        if extra.
        """
        column = self.padded(rows)
        many, _, width, dim = column.shape
        shape, line = (self.tiles, many, self.window * width, dim), width * dim
        windows = column.as_strided(shape, (self.step * line, column.stride(0), dim, 1))
        return (
            torch.cat([extra.expand(self.tiles, -1, -1, -1), windows], 2) if self.extra else windows
        )

    def add(self, total: Tensor, windows: Tensor) -> None:
        """Add gradients of windows (tiles, batch x heads, keys, dim) to those of their column of
        keys.
        """
        batch, height, width, heads, dim = total.shape
        column = total.new_zeros(
            batch * heads, self.step * (self.tiles - 1) + self.window, width, dim
        )
        for tile, window in enumerate(windows.unflatten(2, (self.window, width))):
            column[:, tile * self.step : tile * self.step + self.window] += window
        total += (
            column[:, self.above : self.above + height]
            .unflatten(0, (batch, heads))
            .permute(0, 2, 3, 1, 4)
        )


# Small attentions
# ---------------------------------------------------------------------------------------------


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, wants_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """(result, log-sum-exp where it is wanted) of (..., queries, dim) tensors whose scores may be
    held at once.
    """
    if not wants_lse:
        return attention(q, k, v, mask, scale), None
    scores = (q * scale) @ k.transpose(-1, -2)
    scores = scores if mask is None else scores.add_(mask)
    lse = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(lse).exp_() @ v, lse


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """PyTorch's own, with values and heads of one width: else it writes out every score."""
    width, exit_dim = max(q.shape[-1], v.shape[-1]), v.shape[-1]
    q, k, v = (
        F.pad(each, (0, width - each.shape[-1])) if each.shape[-1] < width else each
        for each in (q, k, v)
    )
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)[..., :exit_dim]


def slopes(
    grad: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the same with respect to q, k, v and mask, from its inputs."""
    scores = (q * scale) @ k.transpose(-1, -2)
    weights = (scores if mask is None else scores.add_(mask)).softmax(-1)
    slope = grad @ v.transpose(-1, -2)
    shift = (weights * slope).sum(-1, keepdim=True)
    slope = slope.sub_(shift if d_lse is None else shift - d_lse).mul_(weights)  # of the scores
    return (
        slope @ k * scale,
        slope.transpose(-1, -2) @ (q * scale),
        weights.transpose(-1, -2) @ grad,
        slope,
    )


def heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).transpose(1, 2)  # (batch, heads, tokens, dim)


def pieces(rows: int, columns: int) -> Iterator[slice]:
    """Rows whose scores may be held at once."""
    size = max(1, SCORES // max(1, columns))
    for start in range(0, rows, size):
        yield slice(start, start + size)


# The two functions
# ---------------------------------------------------------------------------------------------


@launch.exact
def window(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, wants_lse):
    batch, tokens, heads, _ = q.shape
    dtype = launch.wide(q.dtype)
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty((batch, heads, tokens) if wants_lse else (0,), dtype=dtype)
    if text:
        asked, keys, values = (
            heads_first(q[:, :text], dtype),
            heads_first(k, dtype),
            heads_first(v, dtype),
        )
        for rows in pieces(text, batch * heads * tokens) if wants_lse else [slice(0, text)]:
            read, sums = attend(asked[:, :, rows], keys, values, None, scale, wants_lse)
            out[:, :text][:, rows] = read.transpose(1, 2)
            if wants_lse:
                lse[:, :, :text][:, :, rows] = sums.squeeze(3)
    more_k, more_v = _extra(k, extra_k, text, dtype), _extra(v, extra_v, text, dtype)
    plan = _Plan(height, width, radius, shape, more_k.shape[1], dtype, q.device)
    q, k, v, rows = (tensor[:, text:].unflatten(1, (height, width)) for tensor in (q, k, v, out))
    for near, around, mask in plan.columns():
        keys, values = plan.windows(k[:, :, around], more_k), plan.windows(v[:, :, around], more_v)
        read, sums = attend(plan.queries(q[:, :, near]), keys, values, mask, scale, wants_lse)
        rows[:, :, near] = plan.rows(read, batch)
        if wants_lse:
            place = lse[:, :, text:].unflatten(2, (height, width))
            place[..., near] = plan.rows(sums, batch).squeeze(4).permute(0, 3, 1, 2)
    return out, lse


@launch.exact
def window_backward(
    grad, d_lse, q, k, v, extra_k, extra_v, out, lse, height, width, radius, text, shape, scale
):  # out and lse are what the Triton path keeps
    batch, tokens, heads, _ = q.shape
    dtype = launch.wide(q.dtype)
    dq, dk, dv = (
        torch.zeros_like(t, dtype=dtype, memory_format=torch.contiguous_format) for t in (q, k, v)
    )
    if text:
        keys, values = heads_first(k, dtype), heads_first(v, dtype)
        asked, told = heads_first(q[:, :text], dtype), heads_first(grad[:, :text], dtype)
        for rows in pieces(text, batch * heads * tokens):
            sums = None if d_lse is None else d_lse[:, :, :text][:, :, rows, None].to(dtype)
            slope_q, slope_k, slope_v, _ = slopes(
                told[:, :, rows], sums, asked[:, :, rows], keys, values, None, scale
            )
            dq[:, :text][:, rows] = slope_q.transpose(1, 2)
            dk += slope_k.transpose(1, 2)
            dv += slope_v.transpose(1, 2)
    more_k, more_v = _extra(k, extra_k, text, dtype), _extra(v, extra_v, text, dtype)
    d_more_k, d_more_v = torch.zeros_like(more_k), torch.zeros_like(more_v)
    plan = _Plan(height, width, radius, shape, more_k.shape[1], dtype, q.device)
    totals = [total[:, text:].unflatten(1, (height, width)) for total in (dq, dk, dv)]
    grad, q, k, v = (tensor[:, text:].unflatten(1, (height, width)) for tensor in (grad, q, k, v))
    sums = (
        None
        if d_lse is None
        else d_lse[:, :, text:].unflatten(2, (height, width)).permute(0, 2, 3, 1).unsqueeze(4)
    )
    for near, around, mask in plan.columns():
        keys, values = plan.windows(k[:, :, around], more_k), plan.windows(v[:, :, around], more_v)
        column = [plan.queries(grad[:, :, near]), plan.queries(q[:, :, near]), keys, values, mask]
        told = None if sums is None else plan.queries(sums[:, :, near])
        size = max(1, SCORES // (keys.shape[1] * mask[0].numel()))  # tiles at a time
        found = []
        for start in range(0, plan.tiles, size):
            part, *rest = (each[start : start + size] for each in column)
            found.append(
                slopes(part, None if told is None else told[start : start + size], *rest, scale)[:3]
            )
        slope_q, slope_k, slope_v = (torch.cat(each) for each in zip(*found, strict=True))
        totals[0][:, :, near] = plan.rows(slope_q, batch)
        for total, extra_total, slope in (
            (totals[1], d_more_k, slope_k),
            (totals[2], d_more_v, slope_v),
        ):
            plan.add(total[:, :, around], slope[:, :, plan.extra :])
            if plan.extra:
                extra_total += slope[:, :, : plan.extra].sum(0)
    return _given(dq, dk, dv, d_more_k, d_more_v, extra_k, extra_v, text, grad.dtype)


def _extra(own: Tensor, extra: Tensor | None, text: int, dtype: torch.dtype) -> Tensor:
    """What every picture token reads: the text's and the extra keys, (batch x heads, keys, dim)."""
    both = own[:, :text] if extra is None else torch.cat([own[:, :text], extra], 1)
    return heads_first(both, dtype).flatten(0, 1)


def _given(dq, dk, dv, d_more_k, d_more_v, extra_k, extra_v, text, dtype):
    """Gradients of the inputs as they were given."""
    batch = dq.shape[0]
    more = []
    for total, slope, extra in ((dk, d_more_k, extra_k), (dv, d_more_v, extra_v)):
        slope = slope.unflatten(0, (batch, -1)).transpose(1, 2)  # (batch, text + extra, heads, dim)
        total[:, :text] += slope[:, :text]
        more.append(
            total.new_empty(0, dtype=dtype)
            if extra is None
            else slope[:, text:].to(dtype).contiguous()
        )
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), *more
