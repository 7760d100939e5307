"""Attention through a few mediators, in two operations: they gather from all keys, and spread to
all queries.

- Each is a softmax attention with one short side, and an operation of its own with its own
  backward: gradients of the mediators, which take part in both, are added by autograd.
- The gathered values are few enough for an all-reduce between the two, where a sequence is split
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
    """softmax(q m^T) softmax(m k^T) v, like q; the mediators m are (batch, count, heads, head_dim).

    Biases are added to the scaled scores: `bias_in` to (batch, heads, count, keys), `bias_out` to
    (batch, heads, queries, count), or what broadcasts to them; who may read nothing, all scores
    being -inf, reads 0. `backend`: the path this call takes, as `use_backend` says it for all.
    """
    check.mediator(q, k, v, mediators, scale, bias_in, bias_out)
    path = launch.choose(
        q.device, q.dtype, max(q.shape[3], v.shape[3]), backend, check.MOST_SOFTMAX
    ).path
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    q, k, v, mediators, bias_in, bias_out = launch.cast(q, k, v, mediators, bias_in, bias_out)
    if path == "reference":
        biases = {"bias_in": bias_in, "bias_out": bias_out}
        biases = {name: None if bias is None else bias.to(q.dtype) for name, bias in biases.items()}
        return reference.mediator_attention(q, k, v, mediators, scale=scale, **biases)
    bias_in, bias_out = (
        None if bias is None else bias[(None,) * (4 - bias.ndim)] for bias in (bias_in, bias_out)
    )
    if path == "torch":
        return mediator_torch.mediator_attention(q, k, v, mediators, bias_in, bias_out, scale)
    told, _ = _gather(mediators, k, v, bias_in, scale)
    return _spread(q, mediators, told, bias_out, scale)[0]


# The operations, on a GPU
# -------------------------------------------------------------------------------------------- Both
# are softmax(a b^T + bias) c: `gather` has few rows a, `spread` few columns b and c. What is
# gathered stays wide between them: mediators of one picture say nearly the same, and their
# differences are all the backward sees.


@torch.library.custom_op("linattn_kernels::mediator_gather", mutates_args=())
def _gather(
    mediators: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return _kernels().gather(mediators, k, v, bias, scale)


@torch.library.custom_op("linattn_kernels::mediator_gather_backward", mutates_args=())
def _gather_backward(
    grad: Tensor,
    mediators: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels().gather_backward(grad, mediators, k, v, bias, out, lse, scale)


@torch.library.custom_op("linattn_kernels::mediator_spread", mutates_args=())
def _spread(
    q: Tensor, mediators: Tensor, told: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return _kernels().spread(q, mediators, told, bias, scale)


@torch.library.custom_op("linattn_kernels::mediator_spread_backward", mutates_args=())
def _spread_backward(
    grad: Tensor,
    q: Tensor,
    mediators: Tensor,
    told: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels().spread_backward(grad, q, mediators, told, bias, out, lse, scale)


def _kernels() -> ModuleType:
    """Triton is imported when it is needed."""
    return importlib.import_module("linattn_kernels.mediator_triton")


def _wide_shapes(a, b, c, bias, scale):
    batch, rows, heads, _ = a.shape
    wide = launch.wide(a.dtype)
    return a.new_empty(batch, rows, heads, c.shape[3], dtype=wide), a.new_empty(
        batch, heads, rows, dtype=wide
    )


def _shapes(a, *rest):
    out, lse = _wide_shapes(a, *rest)
    return torch.empty_like(out, dtype=a.dtype), lse


def _slopes(grad, a, b, c, bias, out, lse, scale):
    return (
        launch.like(a),
        launch.like(b),
        launch.like(c),
        a.new_empty(0) if bias is None else launch.like(bias),
    )


def _keep(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _step(backward):
    def step(ctx, grad, d_lse):  # nobody reads the log-sum-exp outside
        da, db, dc, d_bias = backward(grad, *ctx.saved_tensors, ctx.scale)
        return da, db, dc, None if ctx.saved_tensors[3] is None else d_bias, None

    return step


for _forward, _backward, _outputs in (
    (_gather, _gather_backward, _wide_shapes),
    (_spread, _spread_backward, _shapes),
):
    _forward.register_fake(_outputs)
    _backward.register_fake(_slopes)
    _forward.register_autograd(_step(_backward), setup_context=_keep)
