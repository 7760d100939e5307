"""Mediator attention in Triton: both steps are softmax attentions with one short side.

In half precision the second step's values are rounded without what they have in common, which the
result gets back: mediators of one picture say nearly the same, and the gradient of a score is the
difference of two of them.
"""

import torch
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.softmax_triton import attend, columns_slope, delta_of, rows_slope


def gather(mediators, k, v, bias, scale):
    return _attend(mediators, k, v, bias, scale, launch.wide(mediators.dtype))


def gather_backward(grad, mediators, k, v, bias, out, lse, scale):
    if not out.numel():
        return _nothing(mediators, k, v, bias)
    grad = launch.unit(grad)
    delta = delta_of(grad, out, None)
    # products round it in any case
    return _slopes(grad.to(k.dtype), mediators, k, v, bias, lse, delta, scale)


def spread(q, mediators, told, bias, scale):
    told, shift = _centred(told, q.dtype)
    return _attend(q, mediators, told, bias, scale, q.dtype, shift)


def spread_backward(grad, q, mediators, told, bias, out, lse, scale):
    if not out.numel():
        return _nothing(q, mediators, told, bias)
    centred, shift = _centred(told, q.dtype)
    grad = launch.unit(grad)
    delta = torch.empty_like(lse) if shift is not None else delta_of(grad, out, None)
    dq, dm, d_told, d_bias = _slopes(
        grad, q, mediators, centred, bias, lse, delta, scale, fills_delta=shift is not None
    )
    return dq, dm, d_told.to(told.dtype), d_bias


def _centred(told: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if told.dtype == dtype:
        return told, None
    shift = told.mean(1, keepdim=True)  # (batch, 1, heads, value_dim)
    return (told - shift).to(dtype), shift


def _attend(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Tensor | None,
    scale: float,
    dtype: torch.dtype,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, rows, heads, _ = a.shape
    out = a.new_empty(batch, rows, heads, c.shape[3], dtype=dtype)
    lse = a.new_empty(batch, heads, rows, dtype=launch.wide(a.dtype))
    if out.numel():
        attend(a, b, c, bias, scale, out, lse, shift)
    return out, lse


def _slopes(grad, a, b, c, bias, lse, delta, scale, fills_delta=False) -> tuple[Tensor, ...]:
    da, d_bias = rows_slope(grad, a, b, c, bias, lse, delta, scale, fills_delta)
    db, dc = columns_slope(grad, a, b, c, bias, lse, delta, scale)
    return da, db, dc, a.new_empty(0) if bias is None else d_bias


def _nothing(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    d_bias = a.new_empty(0) if bias is None else launch.like(bias).zero_()
    return launch.like(a), launch.like(b).zero_(), launch.like(c).zero_(), d_bias
