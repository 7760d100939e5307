"""Mediator attention in PyTorch: attention of one short side.

- On the CPU both ways are PyTorch's own fused attention, whose log-sum-exp is what backward needs; it knows no gradient
  of a bias, and values as wide as the keys only.
- Elsewhere the forward is scaled_dot_product_attention, which keeps no scores, and the backward writes them out a piece
  of rows at a time: with 16 mediators on the CPU, forward and backward, twice the time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.window_torch import heads_first, pieces, slopes

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@launch.exact
def gather(mediators, k, v, bias, scale):
    return _attend(mediators, k, v, bias, scale)


@launch.exact
def gather_backward(grad, mediators, k, v, bias, out, lse, scale):
    return _slopes(grad, mediators, k, v, bias, out, lse, scale)


@launch.exact
def spread(q, mediators, told, bias, scale):
    out, lse = _attend(q, mediators, told, bias, scale)
    return out.to(q.dtype), lse


@launch.exact
def spread_backward(grad, q, mediators, told, bias, out, lse, scale):
    if out.dtype != told.dtype:  # rounded: the gradient of the scores is what is left of two numbers that cancel
        out, lse = _attend(q, mediators, told, bias, scale)
    return _slopes(grad, q, mediators, told, bias, out, lse, scale)


def _is_fused(a: Tensor, c: Tensor, bias: Tensor | None) -> bool:
    return a.device.type == "cpu" and bias is None and a.shape[3] == c.shape[3] and a.numel() > 0


def _attend(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(result, log-sum-exp), both wide."""
    dtype = launch.wide(a.dtype)
    rows, keys, values = (heads_first(launch.unit(each), dtype) for each in (a, b, c))
    if _is_fused(a, c, bias):
        out, lse = _fused(rows, keys, values, scale=scale)
    else:
        out = F.scaled_dot_product_attention(rows, keys, values, None if bias is None else bias.to(dtype), scale=scale)
        lse = a.new_empty(out.shape[:3], dtype=dtype)  # nothing is read of it: backward writes the scores again
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def _slopes(
    grad: Tensor, a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    fused = _is_fused(a, c, bias)
    found = _fused_slopes(grad, a, b, c, out, lse, scale) if fused else _written(grad, a, b, c, bias, scale)
    back = [each.transpose(1, 2).to(own.dtype).contiguous() for each, own in zip(found[:3], (a, b, c), strict=True)]
    return *back, grad.new_empty(0) if bias is None else found[3].to(bias.dtype)


def _fused_slopes(
    grad: Tensor, a: Tensor, b: Tensor, c: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, ...]:
    dtype = launch.wide(a.dtype)
    # The fused operations take unit strides for granted.
    told, rows, keys, values, read = (heads_first(launch.unit(each), dtype) for each in (grad, a, b, c, out))
    return _fused_backward(told, rows, keys, values, read, lse, 0.0, False, scale=scale)


def _written(
    grad: Tensor, a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor | None, ...]:
    """The same with the scores written out, a piece of rows at a time, and the bias's gradient."""
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
    return da, db, dc, d_bias
