"""Softmax attention over a window of the picture, one operation forward and one backward.

- The first `text` tokens see everything and are seen by all; `extra` keys (CLEAR's pooled ones) are
  for the picture.
- The window is clipped at the border, as CLEAR's is: a corner token sees a quarter of a disc.
- No N x N tensor, no mask of that size and no block table: what a tile can see follows from its
  place.
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
    """Every picture token reads those strictly inside `radius` (disc: dy^2 + dx^2, square: |dy| and
    |dx|), like v.

    q, k, v (batch, text + height x width, heads, head_dim), the picture row by row after the text.
    `extra`: keys and values that every picture token sees, and no text token. `return_lse` adds the
    log-sum-exp of the scores, (batch, heads, tokens), through which gradients pass. `backend`: the
    path this call takes, as `use_backend` says it for all.
    """
    check.window(q, k, v, height, width, radius, text, shape, scale, extra)
    path = launch.choose(
        q.device, q.dtype, max(q.shape[3], v.shape[3]), backend, check.MOST_SOFTMAX
    ).path
    scale = q.shape[3] ** -0.5 if scale is None else scale
    more_k, more_v = (None, None) if extra is None else extra
    q, k, v, more_k, more_v = launch.cast(q, k, v, more_k, more_v)
    if path == "reference":
        extra = None if extra is None else (more_k, more_v)
        place = {"height": height, "width": width, "radius": radius, "text": text, "shape": shape}
        return reference.window_attention(
            q, k, v, **place, scale=scale, extra=extra, return_lse=return_lse
        )
    place = (height, width, float(radius), text, shape, float(scale))
    if path == "torch" and small_torch.fits_window(q, more_k, height, width, radius, return_lse):
        return small_torch.window_attention(q, k, v, more_k, more_v, *place)
    out, lse = _window(q, k, v, more_k, more_v, *place, return_lse, path)
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
    wants_lse: bool,
    path: str,
) -> tuple[Tensor, Tensor]:
    return _on(path).window(
        q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, wants_lse
    )


@torch.library.custom_op("linattn_kernels::window_backward", mutates_args=())
def _window_backward(
    grad: Tensor,
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
    given = (grad, d_lse, q, k, v, extra_k, extra_v, out, lse)
    return _on(path).window_backward(*given, height, width, radius, text, shape, scale)


def _on(path: str) -> ModuleType:
    return importlib.import_module(f"linattn_kernels.window_{path}")


@_window.register_fake
def _(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, wants_lse, path):
    batch, tokens, heads, _ = q.shape
    kept = wants_lse or path == "triton"
    lse = q.new_empty((batch, heads, tokens) if kept else (0,), dtype=launch.wide(q.dtype))
    return q.new_empty(batch, tokens, heads, v.shape[3]), lse


@_window_backward.register_fake
def _(grad, d_lse, q, k, v, extra_k, extra_v, *rest):
    more = (
        (q.new_empty(0), q.new_empty(0))
        if extra_k is None
        else (launch.like(extra_k), launch.like(extra_v))
    )
    return launch.like(q), launch.like(k), launch.like(v), *more


def _keep(ctx, inputs, output):
    *tensors, ctx.wants_lse, ctx.path = inputs
    ctx.place = tensors[5:]
    kept = output if ctx.path == "triton" else (None, None)
    ctx.save_for_backward(*tensors[:5], *kept)


def _step(ctx, grad, d_lse):
    *tensors, out, lse = ctx.saved_tensors
    d_lse = d_lse if ctx.wants_lse else None
    dq, dk, dv, *more = _window_backward(grad, d_lse, *tensors, out, lse, *ctx.place, ctx.path)
    return dq, dk, dv, *((None, None) if tensors[3] is None else more), *[None] * 8


_window.register_autograd(_step, setup_context=_keep)
