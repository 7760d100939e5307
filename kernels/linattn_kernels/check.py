"""What a call may be given: every mistake is named with both values before anything runs."""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

import torch
from torch import Tensor

from linattn_kernels.reference import FEATURE_MAPS, SHAPES, State

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    first, q = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; it must be (batch, tokens, heads, head_dim)"
            )
        if tensor.shape[3] < 1:
            raise ValueError(f"{name} has a head_dim of 0; a head has one channel at least")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype}; attention takes {', '.join(map(str, DTYPES))}"
            )
        if (tensor.shape[0], tensor.shape[2]) != (q.shape[0], q.shape[2]):
            raise ValueError(
                f"{name} has batch {tensor.shape[0]} and {tensor.shape[2]} heads, {first} has "
                f"batch {q.shape[0]} and "
                f"{q.shape[2]}; expand them to the same"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"{name} is on {tensor.device}, {first} on {q.device}; move one of them"
            )
        if tensor.dtype != q.dtype and not autocasts(q.device.type):
            raise ValueError(f"{name} is {tensor.dtype}, {first} {q.dtype}; cast one of them")


def autocasts(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not -math.inf < value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a finite number")


def pair(name: str, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(tensors, tuple | list) or len(tensors) != 2:
        found = len(tensors) if isinstance(tensors, tuple | list) else type(tensors).__name__
        raise ValueError(f"{name} is {found}; it must be two tensors")
    return tensors[0], tensors[1]


def same(dimension: int, what: str, **tensors: Tensor) -> None:
    (first, one), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[dimension] != one.shape[dimension]:
            raise ValueError(
                f"{name} has {tensor.shape[dimension]} {what}, {first} has {one.shape[dimension]}; "
                "they must agree"
            )


def linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: str,
    shift: float,
    eps: float,
    normaliser: tuple[Tensor, Tensor] | None,
    key_mask: Tensor | None,
    state: State | None,
) -> None:
    known("feature_map", feature_map, FEATURE_MAPS)
    number("shift", shift)
    number("eps", eps)
    layout(q=q, k=k, v=v)
    same(1, "keys", k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    if normaliser is not None:
        below_q, below_k = pair("normaliser", normaliser)
        layout(q=q, normaliser_q=below_q, normaliser_k=below_k)
        same(3, "channels a head", q=q, normaliser_q=below_q, normaliser_k=below_k)
        same(1, "queries", q=q, normaliser_q=below_q)
        same(1, "keys", k=k, normaliser_k=below_k)
    if key_mask is not None:
        mask(key_mask, k)
    if state is not None:
        kept(state, k, v)


def mask(key_mask: Tensor, k: Tensor) -> None:
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        kind = key_mask.dtype if isinstance(key_mask, Tensor) else type(key_mask).__name__
        raise ValueError(
            f"key_mask is {kind}; it must be a tensor of torch.bool, True where a key counts: ones "
            "and zeros become "
            "one by mask != 0, what is added to scores by mask == 0"
        )
    if tuple(key_mask.shape) != tuple(k.shape[:2]):
        raise ValueError(
            f"key_mask is {tuple(key_mask.shape)}; (batch, keys) is {tuple(k.shape[:2])}"
        )
    if key_mask.device != k.device:
        raise ValueError(f"key_mask is on {key_mask.device}, k on {k.device}; move one of them")


def kept(state: State, k: Tensor, v: Tensor) -> None:
    """A state that these keys and values can be joined to."""
    if not isinstance(state, State):
        raise ValueError(
            f"state is a {type(state).__name__}; it must be a State, as return_state=True gives it"
        )
    batch, _, heads, dim = k.shape
    wanted = {
        "values": (batch, heads, dim, v.shape[3]),
        "keys": (batch, heads, dim),
        "count": (batch,),
    }
    dtype = torch.promote_types(k.dtype, torch.float32)
    for name, shape in wanted.items():
        part = getattr(state, name)
        if not isinstance(part, Tensor) or tuple(part.shape) != shape:
            found = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"the state's {name} are {found}; these tensors need {shape}")
        if part.device != k.device:
            raise ValueError(
                f"the state's {name} are on {part.device}, k on {k.device}; move one of them"
            )
        if part.dtype != dtype:
            raise ValueError(
                f"the state's {name} are {part.dtype}; beside k in {k.dtype} they must be {dtype}"
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
    scale: float | None,
    extra: tuple[Tensor, Tensor] | None,
) -> None:
    known("shape", shape, SHAPES)
    layout(q=q, k=k, v=v)
    same(1, "tokens", q=q, k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    number("scale", 1.0 if scale is None else scale)
    number("radius", radius)
    for name, size in (("height", height), ("width", width), ("text", text)):
        if isinstance(size, bool) or not isinstance(size, Integral | torch.SymInt):
            raise ValueError(f"{name} is {size!r}; it must be a whole number")
    if not radius > 0:
        raise ValueError(
            f"a radius of {radius}; above 0 a token sees itself at least, and it must be finite"
        )
    if min(height, width) < 1 or text < 0:
        raise ValueError(
            f"a picture of {height} x {width} after {text} text tokens; sides are at least 1, text "
            "0"
        )
    if q.shape[1] != text + height * width:
        raise ValueError(
            f"{q.shape[1]} tokens; {text} of text and a picture of {height} x {width} make "
            f"{text + height * width}"
        )
    if extra is not None:
        more_k, more_v = pair("extra", extra)
        layout(q=q, extra_k=more_k, extra_v=more_v)
        same(1, "keys", extra_k=more_k, extra_v=more_v)
        same(3, "channels a head", k=k, extra_k=more_k)
        same(3, "channels a head", v=v, extra_v=more_v)


def mediator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mediators: Tensor,
    scale: float | None,
    bias_in: Tensor | None,
    bias_out: Tensor | None,
) -> None:
    number("scale", 1.0 if scale is None else scale)
    layout(q=q, k=k, v=v, mediators=mediators)
    same(1, "keys", k=k, v=v)
    same(3, "channels a head", q=q, k=k, mediators=mediators)
    batch, queries, heads, _ = q.shape
    count, keys = mediators.shape[1], k.shape[1]
    if count < 1 or keys < 1:
        raise ValueError(f"{count} mediators read {keys} keys; at least one of each is needed")
    wanted = {
        "bias_in": (bias_in, (batch, heads, count, keys)),
        "bias_out": (bias_out, (batch, heads, queries, count)),
    }
    for name, (bias, full) in wanted.items():
        if bias is None:
            continue
        if not isinstance(bias, Tensor) or not bias.is_floating_point():
            kind = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
            raise ValueError(
                f"{name} is {kind}; it must be a floating-point tensor, -inf where nothing may be "
                "read"
            )
        sides = (1,) * (4 - bias.ndim) + tuple(bias.shape)
        if len(sides) > 4 or any(
            one != 1 and one != whole for one, whole in zip(sides, full, strict=True)
        ):
            raise ValueError(f"{name} is {tuple(bias.shape)}; it must broadcast to {full}")
        if bias.device != q.device:
            raise ValueError(f"{name} is on {bias.device}, q on {q.device}; move one of them")
