"""Attention through a few mediators: they gather from all keys, then spread to all queries.

- Each step is a softmax attention with one short side, and an operation of its own with its own
  backward. The mediators take part in both; autograd adds their two gradients.
- The gathered values are few enough for an all-reduce between the steps, where a sequence is split
  over devices.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from linattn_kernels import check, launch, mediator_torch, reference


def mediator_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mediators: Tensor,
    *,
    scale: float | None = None,
    bias_in: Tensor | None = None,
    bias_out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute softmax(q m^T + bias_out) softmax(m k^T + bias_in) v for a few mediators m.

    A query or a mediator whose scores are all -inf reads 0.

    Args:
        q: queries of shape (batch, queries, heads, head_dim).
        k: keys of shape (batch, keys, heads, head_dim).
        v: values of shape (batch, keys, heads, value_dim).
        mediators: m of shape (batch, count, heads, head_dim).
        scale: factor of both products before their biases; head_dim ** -0.5 by default.
        bias_in: what is added to the scores of mediators and keys, (batch, heads, count, keys) or
            what broadcasts to it.
        bias_out: what is added to the scores of queries and mediators, (batch, heads, queries,
            count) or what broadcasts to it.
        backend: "triton", "torch" or "reference" for this call, as `use_backend` sets for all.

    Returns:
        The output of shape (batch, queries, heads, value_dim), in q's precision.
    """
    check.mediator(q, k, v, mediators, scale, bias_in, bias_out)
    head_dim = max(q.shape[3], v.shape[3])
    path = launch.choose(q.device, q.dtype, head_dim, backend, check.MOST_SOFTMAX).path
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    q, k, v, mediators = launch.cast(q, k, v, mediators)
    bias_in, bias_out = _cast(bias_in), _cast(bias_out)
    if path == "reference":
        bias_in, bias_out = _to(bias_in, q.dtype), _to(bias_out, q.dtype)
        return reference.mediator_attention(
            q, k, v, mediators, scale=scale, bias_in=bias_in, bias_out=bias_out
        )
    bias_in, bias_out = _four_dimensional(bias_in), _four_dimensional(bias_out)
    if path == "torch":
        return mediator_torch.mediator_attention(q, k, v, mediators, bias_in, bias_out, scale)
    gathered, _ = _gather(mediators, k, v, bias_in, scale)
    return _spread(q, mediators, gathered, bias_out, scale)[0]


def _cast(bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return None
    (bias,) = launch.cast(bias)
    return bias


def _to(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _four_dimensional(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias[(None,) * (4 - bias.ndim)]


# The operations, on a GPU
# ---------------------------------------------------------------------------------------------
# Both are softmax(q k^T + bias) v: `gather` has few q (the mediators), `spread` few k (the
# mediators) and v (what they gathered). The gathered values stay in float32 between them: mediators
# of one picture hold nearly the same, and their differences are all the backward sees.


@torch.library.custom_op("linattn_kernels::mediator_gather", mutates_args=())
def _gather(
    mediators: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return _kernels().gather(mediators, k, v, bias, scale)


@torch.library.custom_op("linattn_kernels::mediator_gather_backward", mutates_args=())
def _gather_backward(
    grad_out: Tensor,
    mediators: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels().gather_backward(grad_out, mediators, k, v, bias, out, lse, scale)


@torch.library.custom_op("linattn_kernels::mediator_spread", mutates_args=())
def _spread(
    q: Tensor, mediators: Tensor, gathered: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return _kernels().spread(q, mediators, gathered, bias, scale)


@torch.library.custom_op("linattn_kernels::mediator_spread_backward", mutates_args=())
def _spread_backward(
    grad_out: Tensor,
    q: Tensor,
    mediators: Tensor,
    gathered: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels().spread_backward(grad_out, q, mediators, gathered, bias, out, lse, scale)


def _kernels() -> ModuleType:
    """Return the Triton module, which is imported when it is needed."""
    return importlib.import_module("linattn_kernels.mediator_triton")


def _gather_outputs(q, k, v, bias, scale):
    batch, tokens, heads, _ = q.shape
    dtype = launch.acc_dtype(q.dtype)
    out = q.new_empty(batch, tokens, heads, v.shape[3], dtype=dtype)
    return out, q.new_empty(batch, heads, tokens, dtype=dtype)


def _spread_outputs(q, *inputs):
    out, lse = _gather_outputs(q, *inputs)
    return torch.empty_like(out, dtype=q.dtype), lse


def _gradients(grad_out, q, k, v, bias, out, lse, scale):
    d_bias = q.new_empty(0) if bias is None else launch.empty_like(bias)
    return launch.empty_like(q), launch.empty_like(k), launch.empty_like(v), d_bias


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _autograd(backward):
    def gradients(ctx, grad_out, d_lse):  # the log-sum-exp is not returned to the caller
        dq, dk, dv, d_bias = backward(grad_out, *ctx.saved_tensors, ctx.scale)
        return dq, dk, dv, None if ctx.saved_tensors[3] is None else d_bias, None

    return gradients


for _forward, _backward, _outputs in (
    (_gather, _gather_backward, _gather_outputs),
    (_spread, _spread_backward, _spread_outputs),
):
    _forward.register_fake(_outputs)
    _backward.register_fake(_gradients)
    _forward.register_autograd(_autograd(_backward), setup_context=_save)
