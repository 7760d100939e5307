"""What a call may be given: every mistake is named with both values before anything runs."""

import difflib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from linattn_kernels.reference import FEATURE_MAPS, SHAPES, State

MOST = 288  # head_dim of the linear kernels: LiT-XL's four heads
MOST_SOFTMAX = 160  # of the others: SD 1.5's widest


def known(what: str, name: str, valid: Iterable[str]) -> None:
    valid = list(valid)
    if name not in valid:
        near = difflib.get_close_matches(str(name), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {name!r}; choose one of {', '.join(valid)}{hint}")


def layout(**tensors: Tensor) -> None:
    """(batch, tokens, heads, dim) each, one floating dtype, one device, the same batch and heads."""
    first, q = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(f"{name} is {tuple(tensor.shape)}; it must be (batch, tokens, heads, head_dim)")
        if tensor.shape[3] < 1:
            raise ValueError(f"{name} has a head_dim of 0; a head has one channel at least")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; attention takes floating-point tensors")
        if (tensor.shape[0], tensor.shape[2]) != (q.shape[0], q.shape[2]):
            raise ValueError(
                f"{name} has batch {tensor.shape[0]} and {tensor.shape[2]} heads, {first} has batch {q.shape[0]} and "
                f"{q.shape[2]}; expand them to the same"
            )
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {q.device}; move one of them")
        if tensor.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise ValueError(f"{name} is {tensor.dtype}, {first} {q.dtype}; cast one of them")


def same(dimension: int, what: str, **tensors: Tensor) -> None:
    (first, one), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[dimension] != one.shape[dimension]:
            raise ValueError(
                f"{name} has {tensor.shape[dimension]} {what}, {first} has {one.shape[dimension]}; they must agree"
            )


def linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: str,
    normaliser: tuple[Tensor, Tensor] | None,
    key_mask: Tensor | None,
    state: State | None,
) -> None:
    known("feature_map", feature_map, FEATURE_MAPS)
    layout(q=q, k=k, v=v)
    same(1, "keys", k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    if normaliser is not None:
        below_q, below_k = normaliser
        layout(q=q, normaliser_q=below_q, normaliser_k=below_k)
        same(3, "channels a head", q=q, normaliser_q=below_q, normaliser_k=below_k)
        same(1, "queries", q=q, normaliser_q=below_q)
        same(1, "keys", k=k, normaliser_k=below_k)
    if key_mask is not None and tuple(key_mask.shape) != tuple(k.shape[:2]):
        raise ValueError(f"key_mask is {tuple(key_mask.shape)}; (batch, keys) is {tuple(k.shape[:2])}")
    if key_mask is not None and key_mask.device != k.device:
        raise ValueError(f"key_mask is on {key_mask.device}, k on {k.device}; move one of them")
    if state is not None:
        batch, _, heads, dim = k.shape
        wanted = (batch, heads, dim, v.shape[3])
        if tuple(state.values.shape) != wanted or tuple(state.keys.shape) != wanted[:3]:
            raise ValueError(
                f"the state's values are {tuple(state.values.shape)} and its keys {tuple(state.keys.shape)}; "
                f"these tensors need {wanted} and {wanted[:3]}"
            )


def window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height: int,
    width: int,
    radius: float,
    text: int,
    shape: str,
    extra: tuple[Tensor, Tensor] | None,
) -> None:
    known("shape", shape, SHAPES)
    layout(q=q, k=k, v=v)
    same(1, "tokens", q=q, k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    if not 0 < radius < math.inf:
        raise ValueError(f"a radius of {radius}; above 0 a token sees itself at least, and it must be finite")
    if min(height, width) < 1 or text < 0:
        raise ValueError(f"a picture of {height} x {width} after {text} text tokens; sides are at least 1, text 0")
    if q.shape[1] != text + height * width:
        raise ValueError(
            f"{q.shape[1]} tokens; {text} of text and a picture of {height} x {width} make {text + height * width}"
        )
    if extra is not None:
        more_k, more_v = extra
        layout(q=q, extra_k=more_k, extra_v=more_v)
        same(1, "keys", extra_k=more_k, extra_v=more_v)
        same(3, "channels a head", k=k, extra_k=more_k)
        same(3, "channels a head", v=v, extra_v=more_v)


def mediator(
    q: Tensor, k: Tensor, v: Tensor, mediators: Tensor, bias_in: Tensor | None, bias_out: Tensor | None
) -> None:
    layout(q=q, k=k, v=v, mediators=mediators)
    same(1, "keys", k=k, v=v)
    same(3, "channels a head", q=q, k=k, mediators=mediators)
    batch, queries, heads, _ = q.shape
    count, keys = mediators.shape[1], k.shape[1]
    if count < 1 or keys < 1:
        raise ValueError(f"{count} mediators read {keys} keys; at least one of each is needed")
    wanted = {"bias_in": (bias_in, (batch, heads, count, keys)), "bias_out": (bias_out, (batch, heads, queries, count))}
    for name, (bias, full) in wanted.items():
        if bias is None:
            continue
        sides = (1,) * (4 - bias.ndim) + tuple(bias.shape)
        if len(sides) > 4 or any(one != 1 and one != whole for one, whole in zip(sides, full, strict=True)):
            raise ValueError(f"{name} is {tuple(bias.shape)}; it must broadcast to {full}")
        if bias.device != q.device:
            raise ValueError(f"{name} is on {bias.device}, q on {q.device}; move one of them")
