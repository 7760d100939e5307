"""Mediator attention in Triton: both steps are softmax attentions with one short side."""

from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.softmax_triton import attend, columns_slope, delta_of, rows_slope


def gather(mediators, k, v, bias, scale):
    return _attend(mediators, k, v, bias, scale)


def gather_backward(grad, mediators, k, v, bias, out, lse, scale):
    return _backward(grad, mediators, k, v, bias, out, lse, scale)


spread, spread_backward = gather, gather_backward


def _attend(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, rows, heads, _ = a.shape
    out = a.new_empty(batch, rows, heads, c.shape[3])
    lse = a.new_empty(batch, heads, rows, dtype=launch.wide(a.dtype))
    if out.numel():
        attend(a, b, c, bias, scale, out, lse)
    return out, lse


def _backward(grad, a, b, c, bias, out, lse, scale) -> tuple[Tensor, ...]:
    if not out.numel():
        d_bias = a.new_empty(0) if bias is None else launch.like(bias).zero_()
        return launch.like(a), launch.like(b).zero_(), launch.like(c).zero_(), d_bias
    grad = launch.unit(grad)
    delta = delta_of(grad, out, None)
    da, d_bias = rows_slope(grad, a, b, c, bias, lse, delta, scale)
    db, dc = columns_slope(grad, a, b, c, bias, lse, delta, scale)
    return da, db, dc, a.new_empty(0) if bias is None else d_bias
