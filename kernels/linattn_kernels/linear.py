"""Normalised linear attention in two phases: sum up the keys, then let queries read the sums.

- Each phase is an operation of its own with its own backward, so that states of several parts of a
  sequence (or of several devices) can be merged between them, with gradients. Forward moves four
  tensors and backward nine, or seven where `linear_triton` does both halves of it in one pass.
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
    """Compute phi(q) mean(phi(k) v^T) / (phi(q) mean(phi(k)) + eps), not causal.

    A query whose denominator is 0 reads 0.

    Args:
        q: queries of shape (batch, queries, heads, head_dim).
        k: keys of shape (batch, keys, heads, head_dim).
        v: values of shape (batch, keys, heads, value_dim).
        feature_map: phi(t) = feature_map(t) + shift, one of "elu1" (elu + 1), "relu", "relu2" (its
            square) and "identity".
        shift: what is added to the feature map.
        eps: what is added to the denominator.
        normalise: whether to divide by the denominator at all.
        normaliser: queries (batch, queries, heads, head_dim) and keys (batch, keys, heads,
            head_dim) of the denominator, where they differ from q and k (RoPE on the numerator
            only).
        key_mask: (batch, keys) of bool, True where a key counts. What the other keys and values
            are, NaN too, changes nothing.
        state: state of keys seen elsewhere, which is merged with that of these. k[:, :0] and
            v[:, :0] read it alone.
        return_state: whether to return the (merged) state as well; q[:, :0] computes nothing else.
        backend: "triton", "torch" or "reference" for this call, as `use_backend` sets for all.

    Returns:
        The output of shape (batch, queries, heads, value_dim), in q's precision. With
        `return_state`, a pair of the output and the `State`: values (batch, heads, head_dim,
        value_dim), keys (batch, heads, head_dim) and count (batch,), in float32 or wider.
    """
    check.linear(q, k, v, feature_map, shift, eps, normaliser, key_mask, state)
    path = launch.choose(q.device, q.dtype, max(q.shape[3], v.shape[3]), backend, check.MOST).path
    q, k, v = launch.cast(q, k, v)
    if normaliser is not None:
        norm_q, norm_k = launch.cast(*normaliser)
        normaliser = norm_q, norm_k
    if path == "reference":
        return reference.linear_attention(
            q,
            k,
            v,
            feature_map=feature_map,
            shift=shift,
            eps=eps,
            normalise=normalise,
            normaliser=normaliser,
            key_mask=key_mask,
            state=state,
            return_state=return_state,
        )
    norm_q, norm_k = (None, None) if normaliser is None else normaliser
    if path == "torch" and small_torch.fits_linear(q, k, v):
        tensors = (q, k, v, norm_q, norm_k, key_mask, state)
        options = (feature_map, shift, eps, normalise, return_state)
        return small_torch.linear_attention(*tensors, *options)
    merged = State(*_state(k, v, norm_k, key_mask, feature_map, shift, path))
    if state is not None:
        merged = merged.merge(state)
    kv, z, _ = merged
    out = _read(q, norm_q, kv, z, feature_map, shift, eps, normalise, path)
    return (out, merged) if return_state else out


# The operations
# ---------------------------------------------------------------------------------------------
# torch.library takes tensors and plain numbers only. `path` travels from forward to backward.
# kv and z are the state's `values` and `keys`; norm_q and norm_k the normaliser's own queries and
# keys, None where they are q and k.


@torch.library.custom_op("linattn_kernels::linear_state", mutates_args=())
def _state(
    k: Tensor,
    v: Tensor,
    norm_k: Tensor | None,
    mask: Tensor | None,
    feature_map: str,
    shift: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _module(path).state(k, v, norm_k, mask, feature_map, shift)


@torch.library.custom_op("linattn_kernels::linear_state_backward", mutates_args=())
def _state_backward(
    d_kv: Tensor,
    d_z: Tensor,
    count: Tensor,
    k: Tensor,
    v: Tensor,
    norm_k: Tensor | None,
    mask: Tensor | None,
    feature_map: str,
    shift: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _module(path).state_backward(d_kv, d_z, count, k, v, norm_k, mask, feature_map, shift)


@torch.library.custom_op("linattn_kernels::linear_read", mutates_args=())
def _read(
    q: Tensor,
    norm_q: Tensor | None,
    kv: Tensor,
    z: Tensor,
    feature_map: str,
    shift: float,
    eps: float,
    normalise: bool,
    path: str,
) -> Tensor:
    return _module(path).read(q, norm_q, kv, z, feature_map, shift, eps, normalise)


@torch.library.custom_op("linattn_kernels::linear_read_backward", mutates_args=())
def _read_backward(
    grad_out: Tensor,
    q: Tensor,
    norm_q: Tensor | None,
    kv: Tensor,
    z: Tensor,
    feature_map: str,
    shift: float,
    eps: float,
    normalise: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _module(path).read_backward(
        grad_out, q, norm_q, kv, z, feature_map, shift, eps, normalise
    )


def _module(path: str) -> ModuleType:
    """Return the module of a path's four functions; Triton is imported when it is needed."""
    return importlib.import_module(f"linattn_kernels.linear_{path}")


@_state.register_fake
def _(k, v, norm_k, mask, feature_map, shift, path):
    batch, _, heads, dim = k.shape
    dtype = launch.acc_dtype(k.dtype)
    kv = k.new_empty(batch, heads, dim, v.shape[3], dtype=dtype)
    return kv, k.new_empty(batch, heads, dim, dtype=dtype), k.new_empty(batch, dtype=dtype)


@_state_backward.register_fake
def _(d_kv, d_z, count, k, v, norm_k, mask, feature_map, shift, path):
    d_norm_k = k.new_empty(0) if norm_k is None else launch.empty_like(norm_k)
    return launch.empty_like(k), launch.empty_like(v), d_norm_k


@_read.register_fake
def _(q, norm_q, kv, z, feature_map, shift, eps, normalise, path):
    return q.new_empty(*q.shape[:3], kv.shape[3])


@_read_backward.register_fake
def _(grad_out, q, norm_q, kv, z, feature_map, shift, eps, normalise, path):
    d_norm_q = q.new_empty(0) if norm_q is None else launch.empty_like(norm_q)
    return launch.empty_like(q), d_norm_q, launch.empty_like(kv), launch.empty_like(z)


def _save_state(ctx, inputs, output):
    k, v, norm_k, mask, *ctx.options = inputs
    ctx.save_for_backward(output[2], k, v, norm_k, mask)


def _state_gradients(ctx, d_kv, d_z, d_count):
    count, k, v, norm_k, mask = ctx.saved_tensors
    dk, dv, d_norm_k = _state_backward(d_kv, d_z, count, k, v, norm_k, mask, *ctx.options)
    return dk, dv, None if norm_k is None else d_norm_k, None, None, None, None


def _save_read(ctx, inputs, output):
    *tensors, ctx.feature_map, ctx.shift, ctx.eps, ctx.normalise, ctx.path = inputs
    ctx.save_for_backward(*tensors)


def _read_gradients(ctx, grad_out):
    q, norm_q, kv, z = ctx.saved_tensors
    options = (ctx.feature_map, ctx.shift, ctx.eps, ctx.normalise, ctx.path)
    dq, d_norm_q, d_kv, d_z = _read_backward(grad_out, q, norm_q, kv, z, *options)
    return dq, None if norm_q is None else d_norm_q, d_kv, d_z, None, None, None, None, None


_state.register_autograd(_state_gradients, setup_context=_save_state)
_read.register_autograd(_read_gradients, setup_context=_save_read)
