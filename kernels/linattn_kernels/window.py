"""Softmax attention over a window of the picture, one operation forward and one backward.

- The first `text` tokens see everything and are seen by all; `extra` keys (CLEAR's pooled ones) are
  seen by the picture only.
- The window is clipped at the border, as CLEAR's is: a corner token sees a quarter of a disc.
- There is no N x N tensor, no mask of that size and no block table: what a tile can see follows
  from its position.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from linattn_kernels import check, launch, reference, small_torch


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    height: int,
    width: int,
    radius: float,
    text: int = 0,
    shape: str = "disc",
    scale: float | None = None,
    extra: tuple[Tensor, Tensor] | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute softmax attention in which a picture token sees the tokens within a radius.

    The text tokens, which come first, see all tokens and are seen by all.

    Args:
        q: queries of shape (batch, text + height * width, heads, head_dim), the picture row by row
            after the text.
        k: keys of the same shape.
        v: values of shape (batch, text + height * width, heads, value_dim).
        height: rows of the picture.
        width: columns of the picture.
        radius: a token sees those at distances strictly below it.
        text: how many text tokens come before the picture.
        shape: "disc" (dy^2 + dx^2 < radius^2) or "square" (|dy| < radius and |dx| < radius).
        scale: factor of the scores; head_dim ** -0.5 by default.
        extra: keys (batch, extra, heads, head_dim) and values (batch, extra, heads, value_dim)
            that every picture token sees, and no text token.
        return_lse: whether to return the log-sum-exp of the scores as well, through which
            gradients pass.
        backend: "triton", "torch" or "reference" for this call, as `use_backend` sets for all.

    Returns:
        The output of shape (batch, text + height * width, heads, value_dim), in q's precision.
        With `return_lse`, a pair of the output and lse (batch, heads, text + height * width).
    """
    check.window(q, k, v, height, width, radius, text, shape, scale, extra)
    head_dim = max(q.shape[3], v.shape[3])
    path = launch.choose(q.device, q.dtype, head_dim, backend, check.MOST_SOFTMAX).path
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = launch.cast(q, k, v)
    if extra is not None:
        extra_k, extra_v = launch.cast(*extra)
        extra = extra_k, extra_v
    if path == "reference":
        return reference.window_attention(
            q,
            k,
            v,
            height=height,
            width=width,
            radius=radius,
            text=text,
            shape=shape,
            scale=scale,
            extra=extra,
            return_lse=return_lse,
        )
    extra_k, extra_v = (None, None) if extra is None else extra
    options = (height, width, float(radius), text, shape, float(scale))
    if path == "torch" and small_torch.fits_window(q, extra_k, height, width, radius, return_lse):
        return small_torch.window_attention(q, k, v, extra_k, extra_v, *options)
    out, lse = _window(q, k, v, extra_k, extra_v, *options, return_lse, path)
    return (out, lse) if return_lse else out


# The operations
# ---------------------------------------------------------------------------------------------


@torch.library.custom_op("linattn_kernels::window", mutates_args=())
def _window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    height: int,
    width: int,
    radius: float,
    text: int,
    shape: str,
    scale: float,
    return_lse: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    return _module(path).window(
        q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, return_lse
    )


@torch.library.custom_op("linattn_kernels::window_backward", mutates_args=())
def _window_backward(
    grad_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    out: Tensor | None,
    lse: Tensor | None,
    height: int,
    width: int,
    radius: float,
    text: int,
    shape: str,
    scale: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (grad_out, d_lse, q, k, v, extra_k, extra_v, out, lse)
    return _module(path).window_backward(*tensors, height, width, radius, text, shape, scale)


def _module(path: str) -> ModuleType:
    """Return the module of a path's two functions; Triton is imported when it is needed."""
    return importlib.import_module(f"linattn_kernels.window_{path}")


@_window.register_fake
def _(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, return_lse, path):
    batch, tokens, heads, _ = q.shape
    has_lse = return_lse or path == "triton"
    lse_shape = (batch, heads, tokens) if has_lse else (0,)
    lse = q.new_empty(lse_shape, dtype=launch.acc_dtype(q.dtype))
    return q.new_empty(batch, tokens, heads, v.shape[3]), lse


@_window_backward.register_fake
def _(grad_out, d_lse, q, k, v, extra_k, extra_v, *options):
    d_extra_k, d_extra_v = q.new_empty(0), q.new_empty(0)
    if extra_k is not None:
        d_extra_k, d_extra_v = launch.empty_like(extra_k), launch.empty_like(extra_v)
    return launch.empty_like(q), launch.empty_like(k), launch.empty_like(v), d_extra_k, d_extra_v


def _save(ctx, inputs, output):
    *inputs, ctx.return_lse, ctx.path = inputs
    tensors, ctx.options = inputs[:5], inputs[5:]
    outputs = output if ctx.path == "triton" else (None, None)  # PyTorch computes them again
    ctx.save_for_backward(*tensors, *outputs)


def _gradients(ctx, grad_out, d_lse):
    *tensors, out, lse = ctx.saved_tensors
    d_lse = d_lse if ctx.return_lse else None
    dq, dk, dv, *d_extra = _window_backward(
        grad_out, d_lse, *tensors, out, lse, *ctx.options, ctx.path
    )
    has_extra = tensors[3] is not None
    return dq, dk, dv, *(d_extra if has_extra else (None, None)), *[None] * 8


_window.register_autograd(_gradients, setup_context=_save)
