"""Window attention in PyTorch: tiles of 8 x 8 queries, a column of tiles in one call.

- A tile reads the rectangle its windows can reach; a mask removes what lies outside a window or the
  picture.
- Keys and values of a column are copied once; its tiles read overlapping views of that copy. At
  16,384 tokens, 8 heads of 64, radius 8, one core: .31 s against 7.1 s dense (a call for each tile:
  .9 s; written with matmuls: .45 s).
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


class _Tiling:
    """Say which tiles read what, from sizes only.

    A "column" here is a slice of the picture's columns in full height.
    """

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
        self.height, self.width, self.radius, self.shape = height, width, radius, shape
        self.extra, self.dtype, self.device = extra, dtype, device
        self.far = math.ceil(radius) - 1  # the farthest whole distance strictly inside
        self.tiles = -(-height // TILE)  # in a column
        all_rows = TILE + 2 * self.far >= height  # every tile reads all rows
        self.window = height if all_rows else TILE + 2 * self.far  # rows a tile reads
        self.step = 0 if all_rows else TILE  # rows from one tile's window to the next
        self.above = 0 if all_rows else self.far  # empty rows above the picture
        self.masks: dict[tuple[int, int, int], Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the queries' columns, the keys' columns and the mask to add to their scores.

        The mask is (tiles, 1, queries, extra + keys).
        """
        for start in range(0, self.width, TILE):
            end = min(start + TILE, self.width)
            first, last = max(start - self.far, 0), min(end + self.far, self.width)
            mask = self._mask(end - start, start - first, last - first)
            yield slice(start, end), slice(first, last), mask

    def _mask(self, queries: int, before: int, keys: int) -> Tensor:
        """Return the mask of a column of queries, with `before` columns of keys left of it."""
        size = queries, before, keys
        if size not in self.masks:
            visible = self._visible(*size).flatten(3).flatten(1, 2).unsqueeze(1)
            mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
            mask = mask.masked_fill_(~visible, -math.inf)
            self.masks[size] = F.pad(mask, (self.extra, 0))
        return self.masks[size]

    def _visible(self, queries: int, before: int, keys: int) -> Tensor:
        """Return (tiles, query rows, query columns, key rows, key columns)."""
        device = self.device
        query_y = torch.arange(self.tiles * TILE, device=device).view(-1, TILE)  # (tiles, rows)
        first_y = torch.arange(self.tiles, device=device)[:, None] * self.step - self.above
        key_y = first_y + torch.arange(self.window, device=device)  # (tiles, rows of keys)
        query_x = torch.arange(before, before + queries, device=device)
        dy = (query_y[:, :, None] - key_y[:, None])[:, :, None, :, None]
        dx = (query_x[:, None] - torch.arange(keys, device=device))[None, None, :, None, :]
        visible = inside(dy, dx, self.radius, self.shape)
        visible &= ((key_y >= 0) & (key_y < self.height))[:, None, None, :, None]
        # Queries below the picture are dropped later; a row without any key would make them NaN.
        visible |= (query_y >= self.height)[:, :, None, None, None]
        return visible

    def split(self, column: Tensor) -> Tensor:
        """Return (batch, height, w, heads, dim) as (tiles, batch x heads, 8 w, dim)."""
        below = self.tiles * TILE - self.height
        column = F.pad(column.to(self.dtype), (0, 0, 0, 0, 0, 0, 0, below))
        column = column.unflatten(1, (self.tiles, TILE))
        return column.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)

    def join(self, tiles: Tensor, heads: int) -> Tensor:
        """Return what `split` made of a column as that column."""
        tiles = tiles.unflatten(1, (-1, heads)).unflatten(3, (TILE, -1))
        return tiles.permute(1, 0, 3, 4, 2, 5).flatten(1, 2)[:, : self.height]

    def padded(self, column: Tensor) -> Tensor:
        """Return (batch, height, w, heads, dim) as (batch x heads, padded height, w, dim)."""
        batch, height, width, heads, dim = column.shape
        tall = self.step * (self.tiles - 1) + self.window
        out = column.new_zeros(batch, heads, tall, width, dim, dtype=self.dtype)
        out[:, :, self.above : self.above + height] = column.permute(0, 3, 1, 2, 4)
        return out.flatten(0, 1)

    def windows(self, column: Tensor, extra: Tensor) -> Tensor:
        """Return what each tile reads of a column: (tiles, batch x heads, extra + keys, dim).

        These are overlapping views of the padded column, copied where there are extra keys.
        """
        padded = self.padded(column)
        batch_heads, _, width, dim = padded.shape
        row = width * dim
        shape = (self.tiles, batch_heads, self.window * width, dim)
        windows = padded.as_strided(shape, (self.step * row, padded.stride(0), dim, 1))
        if not self.extra:
            return windows
        return torch.cat([extra.expand(self.tiles, -1, -1, -1), windows], 2)

    def add(self, total: Tensor, windows: Tensor) -> None:
        """Add gradients of windows to those of the column of keys that they are views of.

        The windows are (tiles, batch x heads, keys, dim), the total (batch, height, w, heads, dim).
        """
        batch, height, width, heads, dim = total.shape
        tall = self.step * (self.tiles - 1) + self.window
        padded = total.new_zeros(batch * heads, tall, width, dim)
        for tile, window in enumerate(windows.unflatten(2, (self.window, width))):
            padded[:, tile * self.step : tile * self.step + self.window] += window
        column = padded[:, self.above : self.above + height].unflatten(0, (batch, heads))
        total += column.permute(0, 2, 3, 1, 4)


# Small attentions
# ---------------------------------------------------------------------------------------------


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the output and, if asked for, the log-sum-exp.

    The tensors are (..., tokens, dim), and all of their scores must fit in memory at once.
    """
    if not return_lse:
        return attention(q, k, v, mask, scale), None
    scores = (q * scale) @ k.transpose(-1, -2)
    scores = scores if mask is None else scores.add_(mask)
    lse = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(lse).exp_() @ v, lse


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Call PyTorch's own attention, values and heads padded to one width.

    Where the widths differ PyTorch writes out every score.
    """
    value_dim = v.shape[-1]
    width = max(q.shape[-1], value_dim)
    q, k, v = (_padded(tensor, width) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)[..., :value_dim]


def _padded(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing > 0 else tensor


def gradients(
    grad_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `attend` with respect to q, k and v, from its inputs."""
    scores = (q * scale) @ k.transpose(-1, -2)
    p = (scores if mask is None else scores.add_(mask)).softmax(-1)
    dp = grad_out @ v.transpose(-1, -2)
    delta = (p * dp).sum(-1, keepdim=True)
    ds = dp.sub_(delta if d_lse is None else delta - d_lse).mul_(p)
    dq, dk = ds @ k * scale, ds.transpose(-1, -2) @ (q * scale)
    return dq, dk, p.transpose(-1, -2) @ grad_out


def heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).transpose(1, 2)  # (batch, heads, tokens, dim)


def pieces(queries: int, keys: int) -> Iterator[slice]:
    """Yield slices of the queries whose scores may be held at once."""
    size = max(1, SCORES // max(1, keys))
    for start in range(0, queries, size):
        yield slice(start, start + size)


# The two functions
# ---------------------------------------------------------------------------------------------


@launch.without_autocast
def window(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, return_lse):
    batch, tokens, heads, _ = q.shape
    dtype = launch.acc_dtype(q.dtype)
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty((batch, heads, tokens) if return_lse else (0,), dtype=dtype)
    if text:
        text_lse = lse[:, :, :text] if return_lse else None
        text_forward(q[:, :text], k, v, scale, out[:, :text], text_lse)
    # What every picture token reads: the text's keys and the extra ones.
    shared_k, shared_v = _shared(k, extra_k, text, dtype), _shared(v, extra_v, text, dtype)
    tiling = _Tiling(height, width, radius, shape, shared_k.shape[1], dtype, q.device)
    q, k, v, picture = _pictures(height, width, text, q, k, v, out)
    if return_lse:
        picture_lse = lse[:, :, text:].unflatten(2, (height, width))
    for near, around, mask in tiling.columns():
        keys = tiling.windows(k[:, :, around], shared_k)
        values = tiling.windows(v[:, :, around], shared_v)
        queries = tiling.split(q[:, :, near])
        result, result_lse = attend(queries, keys, values, mask, scale, return_lse)
        picture[:, :, near] = tiling.join(result, heads)
        if return_lse:
            column_lse = tiling.join(result_lse, heads).squeeze(4)
            picture_lse[..., near] = column_lse.permute(0, 3, 1, 2)
    return out, lse


def text_forward(q, k, v, scale, out, lse) -> None:
    """Write what the text's queries read of all keys into out and, unless it is None, into lse."""
    batch, text, heads, _ = q.shape
    dtype = launch.acc_dtype(q.dtype)
    q, k, v = heads_first(q, dtype), heads_first(k, dtype), heads_first(v, dtype)
    return_lse = lse is not None
    slices = pieces(text, batch * heads * k.shape[2]) if return_lse else [slice(0, text)]
    for piece in slices:
        result, result_lse = attend(q[:, :, piece], k, v, None, scale, return_lse)
        out[:, piece] = result.transpose(1, 2)
        if result_lse is not None:
            lse[:, :, piece] = result_lse.squeeze(3)


@launch.without_autocast
def window_backward(
    grad_out, d_lse, q, k, v, extra_k, extra_v, out, lse, height, width, radius, text, shape, scale
):  # out and lse are None here: the Triton path alone saves them
    dtype, grad_dtype = launch.acc_dtype(q.dtype), grad_out.dtype
    dq, dk, dv = (contiguous_zeros(tensor, dtype) for tensor in (q, k, v))
    if text:
        text_d_lse = None if d_lse is None else d_lse[:, :, :text]
        text_q, text_grad, text_dq = q[:, :text], grad_out[:, :text], dq[:, :text]
        text_backward(text_grad, text_d_lse, text_q, k, v, scale, text_dq, dk, dv)
    shared_k, shared_v = _shared(k, extra_k, text, dtype), _shared(v, extra_v, text, dtype)
    d_shared_k, d_shared_v = torch.zeros_like(shared_k), torch.zeros_like(shared_v)
    tiling = _Tiling(height, width, radius, shape, shared_k.shape[1], dtype, q.device)
    picture_dq, picture_dk, picture_dv = _pictures(height, width, text, dq, dk, dv)
    grad_out, q, k, v = _pictures(height, width, text, grad_out, q, k, v)
    if d_lse is not None:
        d_lse = d_lse[:, :, text:].unflatten(2, (height, width))
        d_lse = d_lse.permute(0, 2, 3, 1).unsqueeze(4)
    for near, around, mask in tiling.columns():
        keys = tiling.windows(k[:, :, around], shared_k)
        values = tiling.windows(v[:, :, around], shared_v)
        column_grad, queries = tiling.split(grad_out[:, :, near]), tiling.split(q[:, :, near])
        column_d_lse = None if d_lse is None else tiling.split(d_lse[:, :, near])
        column_dq, column_dk, column_dv = _column_gradients(
            column_grad, column_d_lse, queries, keys, values, mask, scale
        )
        picture_dq[:, :, near] = tiling.join(column_dq, dq.shape[2])
        for total, d_shared, grad in (
            (picture_dk, d_shared_k, column_dk),
            (picture_dv, d_shared_v, column_dv),
        ):
            tiling.add(total[:, :, around], grad[:, :, tiling.extra :])
            if tiling.extra:
                d_shared += grad[:, :, : tiling.extra].sum(0)
    d_extra_k = _split_shared(dk, d_shared_k, extra_k, text, grad_dtype)
    d_extra_v = _split_shared(dv, d_shared_v, extra_v, text, grad_dtype)
    return dq.to(grad_dtype), dk.to(grad_dtype), dv.to(grad_dtype), d_extra_k, d_extra_v


def text_backward(grad_out, d_lse, q, k, v, scale, dq, dk, dv) -> None:
    """Write dq of the text's queries, and add what they give to dk and dv of all keys."""
    batch, text, heads, _ = q.shape
    dtype = dq.dtype
    grad_out, q = heads_first(grad_out, dtype), heads_first(q, dtype)
    k, v = heads_first(k, dtype), heads_first(v, dtype)
    for piece in pieces(text, batch * heads * k.shape[2]):
        piece_d_lse = None if d_lse is None else d_lse[:, :, piece, None].to(dtype)
        piece_grad, piece_q = grad_out[:, :, piece], q[:, :, piece]
        piece_dq, piece_dk, piece_dv = gradients(
            piece_grad, piece_d_lse, piece_q, k, v, None, scale
        )
        dq[:, piece] = piece_dq.transpose(1, 2)
        dk += piece_dk.transpose(1, 2)
        dv += piece_dv.transpose(1, 2)


def _pictures(height: int, width: int, text: int, *tensors: Tensor) -> list[Tensor]:
    """Return views of the picture's tokens, (batch, height, width, heads, dim)."""
    return [tensor[:, text:].unflatten(1, (height, width)) for tensor in tensors]


def contiguous_zeros(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)


def _column_gradients(
    grad_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """Return the gradients of a column's tiles, a few tiles at a time."""
    size = max(1, SCORES // max(1, k.shape[1] * mask[0].numel()))
    pieces = []
    for start in range(0, q.shape[0], size):
        tiles = slice(start, start + size)
        tile_d_lse = None if d_lse is None else d_lse[tiles]
        inputs = (grad_out[tiles], tile_d_lse, q[tiles], k[tiles], v[tiles], mask[tiles])
        pieces.append(gradients(*inputs, scale))
    return tuple(torch.cat(tensors) for tensors in zip(*pieces, strict=True))


def _shared(tensor: Tensor, extra: Tensor | None, text: int, dtype: torch.dtype) -> Tensor:
    """Return the text's and the extra keys or values, (batch x heads, text + extra, dim)."""
    shared = tensor[:, :text] if extra is None else torch.cat([tensor[:, :text], extra], 1)
    return heads_first(shared, dtype).flatten(0, 1)


def _split_shared(
    total: Tensor, d_shared: Tensor, extra: Tensor | None, text: int, dtype: torch.dtype
) -> Tensor:
    """Add the text's part of a shared gradient to the total, and return that of the extra keys."""
    d_shared = d_shared.unflatten(0, (-1, total.shape[2])).transpose(1, 2)
    total[:, :text] += d_shared[:, :text]  # (batch, text + extra, heads, dim)
    if extra is None:
        return total.new_empty(0, dtype=dtype)
    return d_shared[:, text:].to(dtype).contiguous()
