"""Softmax attention of every picture token over a disc around it, without the N x N scores.

- The picture is cut into 8 x 8 tiles of queries. A tile reads the rectangle its discs can reach; a mask removes what
  lies outside a disc or the picture. A column of tiles is one call of scaled_dot_product_attention.
- Keys and values of a column are copied once; its tiles read overlapping windows of that copy. At 16,384 tokens,
  8 heads of 64, radius 8, one core: .31 s against 7.1 s dense (a call a tile: .9 s; written with matmuls: .45 s).
- Some keys (`extra`: text, pooled cells) are read by every query.
- Backward computes each tile again: q, k, v are all that is saved, and gradients add up in place. Autograd over the
  slices would fill a full-sized gradient with zeros for each of them.
- torch.compile sees one opaque operation with sizes as arguments: no unrolled loop, no graph a size.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 8
SCORES = 1 << 22  # scores at a time in backward, 16 MB in float32


def reach(radius: float) -> int:
    """The farthest whole distance strictly inside."""
    return math.ceil(radius) - 1


def inside(offset_y: Tensor, offset_x: Tensor, radius: float) -> Tensor:
    return offset_y.double() ** 2 + offset_x.double() ** 2 < radius * radius


class _Plan:
    """Which tiles read what; everything here depends on sizes only."""

    def __init__(self, height: int, width: int, radius: float, extra: int, like: Tensor):
        self.height, self.width, self.radius, self.extra, self.like = height, width, radius, extra, like
        self.far = reach(radius)
        self.tiles = -(-height // TILE)  # in a column
        whole = TILE + 2 * self.far >= height  # every tile reads all rows
        self.window = height if whole else TILE + 2 * self.far  # rows a tile reads
        self.step = 0 if whole else TILE  # rows from one window to the next
        self.above = 0 if whole else self.far  # empty rows above the picture
        self.masks: dict[tuple[int, int, int], Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """The queries' and the keys' columns, and the mask to add to the scores, (tiles, 1, queries, extra + keys)."""
        for start in range(0, self.width, TILE):
            end = min(start + TILE, self.width)
            first, last = max(start - self.far, 0), min(end + self.far, self.width)
            yield slice(start, end), slice(first, last), self._mask(end - start, start - first, last - first)

    def _mask(self, queries: int, before: int, keys: int) -> Tensor:
        if (queries, before, keys) not in self.masks:
            device = self.like.device
            place = torch.arange(self.tiles * TILE, device=device).view(-1, TILE)  # (tiles, rows of queries)
            seen = torch.arange(self.tiles, device=device)[:, None] * self.step - self.above
            seen = seen + torch.arange(self.window, device=device)  # (tiles, rows of keys)
            dy = place[:, :, None] - seen[:, None]
            dx = torch.arange(before, before + queries, device=device)[:, None] - torch.arange(keys, device=device)
            allowed = inside(dy[:, :, None, :, None], dx[None, None, :, None, :], self.radius)
            allowed &= ((seen >= 0) & (seen < self.height))[:, None, None, :, None]
            allowed |= (place >= self.height)[:, :, None, None, None]  # rows beyond the picture: anything but nothing
            mask = allowed.flatten(3).flatten(1, 2).unsqueeze(1)
            mask = torch.zeros(mask.shape, dtype=self.like.dtype, device=device).masked_fill_(~mask, -math.inf)
            self.masks[queries, before, keys] = F.pad(mask, (self.extra, 0))
        return self.masks[queries, before, keys]

    def queries(self, rows: Tensor) -> Tensor:
        """A column (batch, height, w, heads, head_dim) as (tiles, batch x heads, 8 w, head_dim)."""
        rows = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, self.tiles * TILE - self.height)).unflatten(1, (self.tiles, TILE))
        return rows.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)

    def rows(self, queries: Tensor, batch: int) -> Tensor:
        """The way back."""
        rows = queries.unflatten(1, (batch, -1)).unflatten(3, (TILE, -1)).permute(1, 0, 3, 4, 2, 5)
        return rows.flatten(1, 2)[:, : self.height]

    def padded(self, rows: Tensor) -> Tensor:
        """A column of keys (batch, height, w, heads, head_dim) as (batch x heads, padded height, w, head_dim)."""
        batch, height, width, heads, head_dim = rows.shape
        tall = self.step * (self.tiles - 1) + self.window
        out = rows.new_zeros(batch, heads, tall, width, head_dim)
        out[:, :, self.above : self.above + height] = rows.permute(0, 3, 1, 2, 4)
        return out.flatten(0, 1)

    def windows(self, rows: Tensor, extra: Tensor) -> Tensor:
        """(tiles, batch x heads, extra + keys, head_dim): overlapping views of the padded column, copied if extra."""
        column = self.padded(rows)
        many, _, width, head_dim = column.shape
        shape, line = (self.tiles, many, self.window * width, head_dim), width * head_dim
        windows = column.as_strided(shape, (self.step * line, column.stride(0), head_dim, 1))
        return torch.cat([extra.expand(self.tiles, -1, -1, -1), windows], 2) if self.extra else windows

    def add(self, total: Tensor, windows: Tensor) -> None:
        """Add gradients of windows (tiles, batch x heads, keys, head_dim) to those of their column of keys."""
        batch, height, width, heads, head_dim = total.shape
        column = total.new_zeros(batch * heads, self.step * (self.tiles - 1) + self.window, width, head_dim)
        for tile, window in enumerate(windows.unflatten(2, (self.window, width))):
            column[:, tile * self.step : tile * self.step + self.window] += window
        total += column[:, self.above : self.above + height].unflatten(0, (batch, heads)).permute(0, 2, 3, 1, 4)


def _heads(extra: Tensor) -> Tensor:
    return extra.transpose(1, 2).flatten(0, 1)  # (batch x heads, extra, head_dim)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    height: int,
    width: int,
    radius: float,
    scale: float,
) -> Tensor:
    plan = _Plan(height, width, radius, extra_k.shape[1], q)
    extra_k, extra_v = _heads(extra_k), _heads(extra_v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q, k, v, rows = (tensor.unflatten(1, (height, width)) for tensor in (q, k, v, out))
    for near, around, mask in plan.columns():
        keys, values = plan.windows(k[:, :, around], extra_k), plan.windows(v[:, :, around], extra_v)
        read = F.scaled_dot_product_attention(plan.queries(q[:, :, near]), keys, values, mask, scale=scale)
        rows[:, :, near] = plan.rows(read, q.shape[0])
    return out


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    height: int,
    width: int,
    radius: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    plan = _Plan(height, width, radius, extra_k.shape[1], q)
    totals = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v, extra_k, extra_v)]
    dq, dk, dv = (total.unflatten(1, (height, width)) for total in totals[:3])
    grad, q, k, v = (tensor.unflatten(1, (height, width)) for tensor in (grad, q, k, v))
    extra_k, extra_v = _heads(extra_k), _heads(extra_v)
    for near, around, mask in plan.columns():
        keys, values = plan.windows(k[:, :, around], extra_k), plan.windows(v[:, :, around], extra_v)
        column = (plan.queries(grad[:, :, near]), plan.queries(q[:, :, near]), keys, values, mask)
        parts = max(1, SCORES // (keys.shape[1] * mask[0].numel()))  # tiles at a time
        slices = [_slopes(*piece, scale) for piece in zip(*(t.split(parts) for t in column), strict=True)]
        slope_q, slope_k, slope_v = (torch.cat(piece) for piece in zip(*slices, strict=True))
        dq[:, :, near] = plan.rows(slope_q, q.shape[0])
        for total, extra_total, slope in ((dk, totals[3], slope_k), (dv, totals[4], slope_v)):
            plan.add(total[:, :, around], slope[:, :, plan.extra :])
            if plan.extra:
                extra_total += slope[:, :, : plan.extra].sum(0).unflatten(0, (q.shape[0], -1)).transpose(1, 2)
    return tuple(totals)


def _slopes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of softmax attention with respect to q, k and v, from its inputs."""
    weights = (q * scale @ k.transpose(2, 3)).add_(mask).softmax(-1)
    slope = grad @ v.transpose(2, 3)
    slope = slope.sub_((weights * slope).sum(-1, keepdim=True)).mul_(weights).mul_(scale)
    return slope @ k, slope.transpose(2, 3) @ q, weights.transpose(2, 3) @ grad


class _Disc(torch.autograd.Function):
    @staticmethod
    def forward(q, k, v, extra_k, extra_v, height, width, radius, scale):
        return _forward(q, k, v, extra_k, extra_v, height, width, radius, scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.rest = inputs[5:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return (*_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None)


@torch.library.custom_op("linattn::disc", mutates_args=())
def _opaque(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    height: int,
    width: int,
    radius: float,
    scale: float,
) -> Tensor:
    return _forward(q, k, v, extra_k, extra_v, height, width, radius, scale).contiguous()


@torch.library.custom_op("linattn::disc_backward", mutates_args=())
def _opaque_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    height: int,
    width: int,
    radius: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _backward(grad, q, k, v, extra_k, extra_v, height, width, radius, scale)
    return tuple(gradient.contiguous() for gradient in grads)


@_opaque.register_fake
def _(q, *rest):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@_opaque_backward.register_fake
def _(grad, *rest):
    return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in rest[:5])


def _opaque_step(ctx, grad):
    return (*_opaque_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None)


_opaque.register_autograd(_opaque_step, setup_context=_Disc.setup_context)


def disc_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor,
    extra_v: Tensor,
    height: int,
    width: int,
    radius: float,
    scale: float,
) -> Tensor:
    """q, k, v of the picture and extra keys and values for every query, all (batch, tokens, heads, head_dim)."""
    path = _opaque if torch.compiler.is_compiling() else _Disc.apply
    return path(q, k, v, extra_k, extra_v, height, width, float(radius), scale)
