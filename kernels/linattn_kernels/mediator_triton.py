"""Mediator attention in Triton: both steps are softmax attentions with one short side.

In half precision the second step's values are rounded less their mean, which is added to the result
unrounded: mediators of one picture hold nearly the same values, and the gradient of a score is the
difference of two of them.
"""

import torch
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.softmax_triton import attend, delta_of, dk_and_dv, dq_and_bias


def gather(mediators, k, v, bias, scale):
    return _attend(mediators, k, v, bias, scale, launch.acc_dtype(mediators.dtype))


def gather_backward(do, mediators, k, v, bias, out, lse, scale):
    if not out.numel():
        return _zeros(mediators, k, v, bias)
    do = launch.unit_stride(do)
    delta = delta_of(do, out, None)
    # do is float32 here; rounding it loses nothing, since every product would round it
    return _gradients(do.to(k.dtype), mediators, k, v, bias, lse, delta, scale)


def spread(q, mediators, gathered, bias, scale):
    gathered, v_mean = _centre(gathered, q.dtype)
    return _attend(q, mediators, gathered, bias, scale, q.dtype, v_mean)


def spread_backward(do, q, mediators, gathered, bias, out, lse, scale):
    if not out.numel():
        return _zeros(q, mediators, gathered, bias)
    centred, v_mean = _centre(gathered, q.dtype)
    do = launch.unit_stride(do)
    delta = torch.empty_like(lse) if v_mean is not None else delta_of(do, out, None)
    dq, dm, d_gathered, d_bias = _gradients(
        do, q, mediators, centred, bias, lse, delta, scale, fills_delta=v_mean is not None
    )
    return dq, dm, d_gathered.to(gathered.dtype), d_bias


def _centre(gathered: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the values in a precision, and their mean if it was taken off before rounding."""
    if gathered.dtype == dtype:
        return gathered, None
    v_mean = gathered.mean(1, keepdim=True)  # (batch, 1, heads, value_dim)
    return (gathered - v_mean).to(dtype), v_mean


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dtype: torch.dtype,
    v_mean: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, n_queries, heads, _ = q.shape
    out = q.new_empty(batch, n_queries, heads, v.shape[3], dtype=dtype)
    lse = q.new_empty(batch, heads, n_queries, dtype=launch.acc_dtype(q.dtype))
    if out.numel():
        attend(q, k, v, bias, scale, out, lse, v_mean)
    return out, lse


def _gradients(do, q, k, v, bias, lse, delta, scale, fills_delta=False) -> tuple[Tensor, ...]:
    dq, d_bias = dq_and_bias(do, q, k, v, bias, lse, delta, scale, fills_delta)
    dk, dv = dk_and_dv(do, q, k, v, bias, lse, delta, scale)
    return dq, dk, dv, q.new_empty(0) if d_bias is None else d_bias


def _zeros(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    d_bias = q.new_empty(0) if bias is None else launch.empty_like(bias).zero_()
    dk, dv = launch.empty_like(k).zero_(), launch.empty_like(v).zero_()
    return launch.empty_like(q), dk, dv, d_bias
