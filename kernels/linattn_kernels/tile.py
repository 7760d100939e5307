"""Softmax attention of tiles of the picture to the tiles of keys that each of them keeps.

- The choice of tiles is the caller's: `kept` lists them for every tile of queries, all equally
  many. Every other tile is read by its mean key or not at all.
- The first `text` tokens see everything, exactly, and are seen by all.
- Means are made here and left to autograd, so the operation has gradients of them as of any key.
"""

import importlib
import math
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import check, launch, reference


def tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    *,
    height: int,
    width: int,
    tile: int,
    text: int = 0,
    scale: float | None = None,
    means: bool = False,
    threshold: float | None = None,
    return_lse: bool = False,
    return_share: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Compute softmax attention in which a tile of the picture reads the tiles that it keeps.

    The text tokens, which come first, read all tokens and are read by all. Tiles at the right and
    the lower border of a picture that `tile` does not divide are partial.

    Args:
        q: queries of shape (batch, text + height * width, heads, head_dim), the picture row by row
            after the text.
        k: keys of the same shape.
        v: values of shape (batch, text + height * width, heads, value_dim).
        kept: the numbers of the tiles of keys that each tile of queries reads, (batch, heads,
            tiles, count) of torch.int64, distinct in their last dimension. Tiles are numbered row
            by row.
        height: rows of the picture.
        width: columns of the picture.
        tile: side of a tile, in tokens.
        text: how many text tokens come before the picture.
        scale: factor of the scores; head_dim ** -0.5 by default.
        means: whether a tile that is not kept is read by its mean key, with the sum of its values
            and its number of tokens in the normaliser. Without, it is not read.
        threshold: a picture token drops keys of the picture, and means, whose weight is below this
            share of the largest that it reads; a mean's weight is here that of one token. None
            keeps all.
        return_lse: whether to return the log-sum-exp of the scores as well, through which
            gradients pass.
        return_share: whether to return the share of each token's weights that lies on means, from
            0 to 1, through which gradients pass.
        backend: "triton", "torch" or "reference" for this call, as `use_backend` sets for all.

    Returns:
        The output of shape (batch, text + height * width, heads, value_dim), in q's precision.
        With `return_lse` or `return_share`, a tuple of the output and what they name, each
        (batch, heads, text + height * width), in this order.
    """
    check.tiles(q, k, v, kept, height, width, tile, text, scale, means, threshold, return_share)
    head_dim = max(q.shape[3], v.shape[3])
    path = launch.choose(q.device, q.dtype, head_dim, backend, check.MOST_SOFTMAX).path
    scale = q.shape[3] ** -0.5 if scale is None else scale
    tile = min(tile, max(height, width))  # beyond the picture a tile is nothing but padding
    q, k, v = launch.cast(q, k, v)
    if path == "reference":
        return reference.tile_attention(
            q,
            k,
            v,
            kept,
            height=height,
            width=width,
            tile=tile,
            text=text,
            scale=scale,
            means=means,
            threshold=threshold,
            return_lse=return_lse,
            return_share=return_share,
        )
    mean_k, mean_v = None, None
    if means:
        mean_k, mean_v = (tile_means(x[:, text:], height, width, tile) for x in (k, v))
    least = -math.inf if threshold is None else math.log(threshold)
    options = (height, width, tile, text, float(scale), least, return_lse)
    out, lse, share = _tile(q, k, v, mean_k, mean_v, kept, *options, path)
    returned = (out, *[lse] * return_lse, *[share] * return_share)
    return returned if len(returned) > 1 else out


def tile_means(
    tokens: Tensor, height: int, width: int, tile: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the mean of each tile of a picture, (batch, tiles, heads, dim).

    Args:
        tokens: the picture's tokens, (batch, height * width, heads, dim).
        height: rows of the picture.
        width: columns of the picture.
        tile: side of a tile, in tokens.
        dtype: precision of the sums; float32, or float64 for float64, by default.
    """
    dtype = launch.acc_dtype(tokens.dtype) if dtype is None else dtype
    tile = min(tile, max(height, width))
    picture = tokens.unflatten(1, (height, width))
    if height % tile or width % tile:
        picture = F.pad(picture, (0, 0, 0, 0, 0, -width % tile, 0, -height % tile))
    cells = picture.unflatten(2, (-1, tile)).unflatten(1, (-1, tile))
    # Row by row, because one sum in float64 takes three times as long: 40 ms, and 14, for 16,384
    # tokens of 512 channels.
    rows = cells[:, :, 0].to(dtype, copy=True)
    for y in range(1, tile):
        rows += cells[:, :, y]
    sums = rows.sum(3).flatten(1, 2)  # (batch, tiles, heads, dim)
    return sums / tile_sizes(height, width, tile).to(sums)[:, None, None]


def tile_sizes(height: int, width: int, tile: int) -> Tensor:
    """Return how many tokens each tile has, (tiles,): fewer at the right and lower border.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        tile: side of a tile, in tokens.
    """
    rows = (height - torch.arange(0, height, tile)).clamp_max(tile)
    columns = (width - torch.arange(0, width, tile)).clamp_max(tile)
    return (rows[:, None] * columns).flatten()


# The operation
# ---------------------------------------------------------------------------------------------


@torch.library.custom_op("linattn_kernels::tile", mutates_args=())
def _tile(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mean_k: Tensor | None,
    mean_v: Tensor | None,
    kept: Tensor,
    height: int,
    width: int,
    tile: int,
    text: int,
    scale: float,
    least: float,
    return_lse: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (q, k, v, mean_k, mean_v, kept)
    return _module(path).tile(*tensors, height, width, tile, text, scale, least, return_lse)


@torch.library.custom_op("linattn_kernels::tile_backward", mutates_args=())
def _tile_backward(
    grad_out: Tensor,
    d_lse: Tensor | None,
    d_share: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mean_k: Tensor | None,
    mean_v: Tensor | None,
    kept: Tensor,
    out: Tensor | None,
    lse: Tensor | None,
    share: Tensor | None,
    height: int,
    width: int,
    tile: int,
    text: int,
    scale: float,
    least: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (grad_out, d_lse, d_share, q, k, v, mean_k, mean_v, kept, out, lse, share)
    return _module(path).tile_backward(*tensors, height, width, tile, text, scale, least)


def _module(path: str) -> ModuleType:
    """Return the module of a path's two functions; Triton is imported when it is needed."""
    return importlib.import_module(f"linattn_kernels.tile_{path}")


@_tile.register_fake
def _(q, k, v, mean_k, mean_v, kept, height, width, tile, text, scale, least, return_lse, path):
    batch, tokens, heads, _ = q.shape
    dtype, rows = launch.acc_dtype(q.dtype), (batch, heads, tokens)
    lse = q.new_empty(rows if return_lse or path == "triton" else (0,), dtype=dtype)
    share = q.new_empty((0,) if mean_k is None else rows, dtype=dtype)
    return q.new_empty(batch, tokens, heads, v.shape[3]), lse, share


@_tile_backward.register_fake
def _(grad_out, d_lse, d_share, q, k, v, mean_k, mean_v, kept, *options):
    d_mean_k, d_mean_v = q.new_empty(0), q.new_empty(0)
    if mean_k is not None:
        d_mean_k, d_mean_v = launch.empty_like(mean_k), launch.empty_like(mean_v)
    return launch.empty_like(q), launch.empty_like(k), launch.empty_like(v), d_mean_k, d_mean_v


def _save(ctx, inputs, output):
    *inputs, ctx.return_lse, ctx.path = inputs
    tensors, ctx.options = inputs[:6], inputs[6:]
    outputs = output if ctx.path == "triton" else (None, None, None)  # PyTorch computes them again
    ctx.save_for_backward(*tensors, *outputs)


def _gradients(ctx, grad_out, d_lse, d_share):
    tensors = ctx.saved_tensors
    has_means = tensors[3] is not None
    d_lse, d_share = d_lse if ctx.return_lse else None, d_share if has_means else None
    dq, dk, dv, *d_means = _tile_backward(
        grad_out, d_lse, d_share, *tensors, *ctx.options, ctx.path
    )
    return dq, dk, dv, *(d_means if has_means else (None, None)), *[None] * 9


_tile.register_autograd(_gradients, setup_context=_save)
