"""Normalised linear attention in two phases: what is kept of the keys, and what queries read of it.

- Each phase is an operation of its own with its own backward, so that states of several parts of a
  sequence (or of several devices) can be merged between them, with gradients: four tensors are
  moved forward, nine backward, and seven where `linear_triton` takes both halves of it together.
- Sums are means over the keys that count, kept in float32 or wider; only inputs and outputs are in
  half precision.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from linattn_kernels import check, launch, reference, small_torch
from linattn_kernels.reference import State


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    shift: float = 0.0,
    eps: float = 1e-4,
    normalise: bool = True,
    normaliser: tuple[Tensor, Tensor] | None = None,
    key_mask: Tensor | None = None,
    state: State | None = None,
    return_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, State]:
    """phi(q) mean(phi(k) v^T) / (phi(q) mean(phi(k)) + eps) with phi(t) = feature_map(t) + shift,
    like q.

    q (batch, queries, heads, head_dim), k and v (batch, keys, heads, head_dim or value_dim).
    `normaliser`: queries and keys of the denominator where they differ (RoPE on the numerator
    only). `key_mask` (batch, keys), of bool, is True where a key counts; what the others are, NaN
    too, changes nothing. `state`: keys seen elsewhere, joined to these; `return_state` gives all of
    them back (q[:, :0] gives a state alone, k[:, :0] and v[:, :0] read one alone). A query whose
    denominator is 0 reads 0. `backend`: the path this call takes, as `use_backend` says it for all.
    """
    check.linear(q, k, v, feature_map, shift, eps, normaliser, key_mask, state)
    path = launch.choose(q.device, q.dtype, max(q.shape[3], v.shape[3]), backend, check.MOST).path
    options = {"feature_map": feature_map, "shift": shift, "eps": eps, "normalise": normalise}
    below_q, below_k = (None, None) if normaliser is None else normaliser
    q, k, v, below_q, below_k = launch.cast(q, k, v, below_q, below_k)
    if path == "reference":
        below = None if normaliser is None else (below_q, below_k)
        more = {
            "normaliser": below,
            "key_mask": key_mask,
            "state": state,
            "return_state": return_state,
        }
        return reference.linear_attention(q, k, v, **options, **more)
    if path == "torch" and small_torch.fits_linear(q, k, v):
        given = (q, k, v, below_q, below_k, key_mask, state)
        return small_torch.linear_attention(
            *given, feature_map, shift, eps, normalise, return_state
        )
    whole = State(*_state(k, v, below_k, key_mask, feature_map, shift, path))
    if state is not None:
        whole = whole.merge(state)
    out = _read(q, below_q, whole.values, whole.keys, feature_map, shift, eps, normalise, path)
    return (out, whole) if return_state else out


# The operations
# ---------------------------------------------------------------------------------------------
# Written with tensors and plain numbers only, as torch.library asks. `path` travels from forward to
# backward.


@torch.library.custom_op("linattn_kernels::linear_state", mutates_args=())
def _state(
    k: Tensor,
    v: Tensor,
    below: Tensor | None,
    mask: Tensor | None,
    feature_map: str,
    shift: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _on(path).state(k, v, below, mask, feature_map, shift)


@torch.library.custom_op("linattn_kernels::linear_state_backward", mutates_args=())
def _state_backward(
    d_values: Tensor,
    d_keys: Tensor,
    count: Tensor,
    k: Tensor,
    v: Tensor,
    below: Tensor | None,
    mask: Tensor | None,
    feature_map: str,
    shift: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _on(path).state_backward(d_values, d_keys, count, k, v, below, mask, feature_map, shift)


@torch.library.custom_op("linattn_kernels::linear_read", mutates_args=())
def _read(
    q: Tensor,
    below: Tensor | None,
    values: Tensor,
    keys: Tensor,
    feature_map: str,
    shift: float,
    eps: float,
    normalise: bool,
    path: str,
) -> Tensor:
    return _on(path).read(q, below, values, keys, feature_map, shift, eps, normalise)


@torch.library.custom_op("linattn_kernels::linear_read_backward", mutates_args=())
def _read_backward(
    grad: Tensor,
    q: Tensor,
    below: Tensor | None,
    values: Tensor,
    keys: Tensor,
    feature_map: str,
    shift: float,
    eps: float,
    normalise: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _on(path).read_backward(grad, q, below, values, keys, feature_map, shift, eps, normalise)


def _on(path: str) -> ModuleType:
    """Where a path's four functions are; Triton is imported when it is needed."""
    return importlib.import_module(f"linattn_kernels.linear_{path}")


@_state.register_fake
def _(k, v, below, mask, feature_map, shift, path):
    batch, _, heads, dim = k.shape
    wide = launch.wide(k.dtype)
    values = k.new_empty(batch, heads, dim, v.shape[3], dtype=wide)
    return values, k.new_empty(batch, heads, dim, dtype=wide), k.new_empty(batch, dtype=wide)


@_state_backward.register_fake
def _(d_values, d_keys, count, k, v, below, mask, feature_map, shift, path):
    return launch.like(k), launch.like(v), k.new_empty(0) if below is None else launch.like(below)


@_read.register_fake
def _(q, below, values, keys, feature_map, shift, eps, normalise, path):
    return q.new_empty(*q.shape[:3], values.shape[3])


@_read_backward.register_fake
def _(grad, q, below, values, keys, feature_map, shift, eps, normalise, path):
    d_below = q.new_empty(0) if below is None else launch.like(below)
    return launch.like(q), d_below, launch.like(values), launch.like(keys)


def _keep_state(ctx, inputs, output):
    k, v, below, mask, *ctx.rest = inputs
    ctx.save_for_backward(output[2], k, v, below, mask)


def _state_step(ctx, d_values, d_keys, d_count):
    count, k, v, below, mask = ctx.saved_tensors
    dk, dv, d_below = _state_backward(d_values, d_keys, count, k, v, below, mask, *ctx.rest)
    return dk, dv, None if below is None else d_below, None, None, None, None


def _keep_read(ctx, inputs, output):
    *tensors, ctx.feature_map, ctx.shift, ctx.eps, ctx.normalise, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _read_step(ctx, grad):
    q, below, values, keys = ctx.saved_tensors
    rest = (ctx.feature_map, ctx.shift, ctx.eps, ctx.normalise, ctx.path)
    dq, d_below, d_values, d_keys = _read_backward(grad, q, below, values, keys, *rest)
    return dq, None if below is None else d_below, d_values, d_keys, None, None, None, None, None


_state.register_autograd(_state_step, setup_context=_keep_state)
_read.register_autograd(_read_step, setup_context=_keep_read)
