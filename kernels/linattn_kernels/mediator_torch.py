"""Mediator attention in PyTorch: scores of one short side, a piece of rows at a time.

The forwards are scaled_dot_product_attention, which keeps no scores; the backwards write them out piece by piece.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.window_torch import heads_first, pieces, slopes


@launch.exact
def gather(mediators, k, v, bias, scale):
    return _attend(mediators, k, v, bias, scale)


@launch.exact
def gather_backward(grad, mediators, k, v, bias, out, lse, scale):
    return _backward(grad, mediators, k, v, bias, scale)


spread, spread_backward = gather, gather_backward


def _attend(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    dtype = launch.wide(a.dtype)
    out = F.scaled_dot_product_attention(
        *(heads_first(each, dtype) for each in (a, b, c)), None if bias is None else bias.to(dtype), scale=scale
    )
    batch, heads, rows, _ = out.shape
    # Backward writes the scores again, so nothing is kept of them here.
    return out.transpose(1, 2).to(a.dtype).contiguous(), a.new_empty(batch, heads, rows, dtype=dtype)


def _backward(grad: Tensor, a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, ...]:
    dtype = launch.wide(a.dtype)
    told, rows, keys, values = (heads_first(each, dtype) for each in (grad, a, b, c))
    batch, heads, count, _ = rows.shape
    da, db, dc = launch.like(rows), torch.zeros_like(keys), torch.zeros_like(values)
    d_bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)
    for piece in pieces(count, batch * heads * keys.shape[2]):
        added = None if bias is None else bias.to(dtype).expand(-1, -1, count, -1)[:, :, piece]
        da[:, :, piece], slope_b, slope_c, slope = slopes(
            told[:, :, piece], None, rows[:, :, piece], keys, values, added, scale
        )
        db += slope_b
        dc += slope_c
        if bias is not None:
            part = d_bias if bias.shape[2] == 1 else d_bias[:, :, piece]
            part += slope.sum_to_size(part.shape)
    found = [each.transpose(1, 2).to(grad.dtype).contiguous() for each in (da, db, dc)]
    return *found, grad.new_empty(0) if bias is None else d_bias.to(bias.dtype)
