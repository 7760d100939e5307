"""Check the arguments of a call: every mistake is named with both values before anything runs."""

import difflib
import math
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from linattn_kernels.reference import FEATURE_MAPS, SHAPES, State

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_HEADS = 128  # of a layer; FLUX has 24, SD3.5 large 38
LAYOUT = "the layout is (batch, tokens, heads, head_dim)"
MOST = 288  # the widest head_dim of the linear kernels: LiT-XL's four heads
MOST_SOFTMAX = 160  # the widest head_dim of the other kernels: SD 1.5's


def name(what: str, value: str, valid: Iterable[str]) -> None:
    """Raise, with the nearest valid name, unless the value is one of them."""
    valid = list(valid)
    if value not in valid:
        near = difflib.get_close_matches(f"{value}", valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {value!r}; choose one of {', '.join(valid)}{hint}")


def layout(**tensors: Tensor) -> None:
    """Raise unless all are (batch, tokens, heads, dim) with one dtype, device, batch and heads."""
    for title, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{title} is a {type(tensor).__name__}; it must be a tensor")
    first, q = next(iter(tensors.items()))
    for title, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(
                f"{title} is {tuple(tensor.shape)}; it must be (batch, tokens, heads, head_dim)"
            )
        if tensor.shape[3] < 1:
            raise ValueError(f"{title} has a head_dim of 0; a head has one channel at least")
        if tensor.dtype not in DTYPES:
            valid = ", ".join(map(str, DTYPES))
            raise ValueError(f"{title} is {tensor.dtype}; attention takes {valid}")
        if (tensor.shape[0], tensor.shape[2]) != (q.shape[0], q.shape[2]):
            raise ValueError(
                f"{title} has batch {tensor.shape[0]} and {tensor.shape[2]} heads, {first} has "
                f"batch {q.shape[0]} and {q.shape[2]}; expand them to the same"
                f"{_transposed(tensor, q)}"
            )
        if tensor.device != q.device:
            raise ValueError(
                f"{title} is on {tensor.device}, {first} on {q.device}; move one of them"
            )
        if tensor.dtype != q.dtype and not autocasts(q.device.type):
            raise ValueError(f"{title} is {tensor.dtype}, {first} {q.dtype}; cast one of them")
    if not torch.compiler.is_compiling():
        _notice_heads_first(first, q)


def _transposed(tensor: Tensor, other: Tensor) -> str:
    """Ask whether heads come first where the first two sizes are alike and the third is not."""
    if tensor.shape[:2] != other.shape[:2]:
        return ""
    return f", or transpose(1, 2) them if heads come first: {LAYOUT}"


def _counted(heads: int, tokens: int) -> str:
    """Say that heads come first where there are as many of them as there should be tokens."""
    return f"; it seems that heads come first: transpose(1, 2), {LAYOUT}" if heads == tokens else ""


def _notice_heads_first(title: str, tensor: Tensor) -> None:
    """Warn about a shape that no model has: more heads than tokens, and more than any has."""
    _, tokens, heads, _ = tensor.shape
    if heads > max(tokens, MOST_HEADS) and tokens > 0:
        warnings.warn(
            f"{title} is {tuple(tensor.shape)}, read as {tokens} tokens of {heads} heads: "
            f"{LAYOUT}; transpose(1, 2) it if heads come first",
            stacklevel=4,
        )


def autocasts(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def number(title: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not -math.inf < value < math.inf:
        raise ValueError(f"{title} is {value!r}; it must be a finite number")


def whole(title: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral | torch.SymInt):
        raise ValueError(f"{title} is {value!r}; it must be a whole number")


def pair(title: str, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(tensors, tuple | list) or len(tensors) != 2:
        got = len(tensors) if isinstance(tensors, tuple | list) else type(tensors).__name__
        raise ValueError(f"{title} is {got}; it must be two tensors")
    return tensors[0], tensors[1]


def same(dimension: int, what: str, **tensors: Tensor) -> None:
    """Raise unless all tensors have the same size in a dimension."""
    sizes = {title: tensor.shape[dimension] for title, tensor in tensors.items()}
    first, wanted = next(iter(sizes.items()))
    for title, size in sizes.items():
        if size != wanted:
            raise ValueError(f"{title} has {size} {what}, {first} has {wanted}; they must agree")


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
    name("feature_map", feature_map, FEATURE_MAPS)
    number("shift", shift)
    number("eps", eps)
    layout(q=q, k=k, v=v)
    same(1, "keys", k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    if normaliser is not None:
        norm_q, norm_k = pair("normaliser", normaliser)
        layout(q=q, normaliser_q=norm_q, normaliser_k=norm_k)
        same(3, "channels a head", q=q, normaliser_q=norm_q, normaliser_k=norm_k)
        same(1, "queries", q=q, normaliser_q=norm_q)
        same(1, "keys", k=k, normaliser_k=norm_k)
    if key_mask is not None:
        mask(key_mask, k)
    if state is not None:
        joinable(state, k, v)


def mask(key_mask: Tensor, k: Tensor) -> None:
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        raise ValueError(
            f"key_mask is {_dtype(key_mask)}; it must be a tensor of torch.bool, True where a key "
            "counts: ones and zeros become one by mask != 0, what is added to scores by mask == 0"
        )
    if tuple(key_mask.shape) != tuple(k.shape[:2]):
        raise ValueError(
            f"key_mask is {tuple(key_mask.shape)}; (batch, keys) is {tuple(k.shape[:2])}"
        )
    if key_mask.device != k.device:
        raise ValueError(f"key_mask is on {key_mask.device}, k on {k.device}; move one of them")


def joinable(state: State, k: Tensor, v: Tensor) -> None:
    """Raise unless the state can be merged with that of these keys and values."""
    if not isinstance(state, State):
        raise ValueError(
            f"state is a {type(state).__name__}; it must be a State, as return_state=True gives it"
        )
    batch, _, heads, dim = k.shape
    shapes = {
        "values": (batch, heads, dim, v.shape[3]),
        "keys": (batch, heads, dim),
        "count": (batch,),
    }
    dtype = torch.promote_types(k.dtype, torch.float32)
    for field, shape in shapes.items():
        tensor = getattr(state, field)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"the state's {field} are {got}; these tensors need {shape}")
        if tensor.device != k.device:
            raise ValueError(
                f"the state's {field} are on {tensor.device}, k on {k.device}; move one of them"
            )
        if tensor.dtype != dtype:
            raise ValueError(
                f"the state's {field} are {tensor.dtype}; beside k in {k.dtype} they must be "
                f"{dtype}"
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
    name("shape", shape, SHAPES)
    layout(q=q, k=k, v=v)
    same(1, "tokens", q=q, k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    number("scale", 1.0 if scale is None else scale)
    number("radius", radius)
    if not radius > 0:
        raise ValueError(
            f"a radius of {radius}; above 0 a token sees itself at least, and it must be finite"
        )
    picture(q, height, width, text)
    if extra is not None:
        extra_k, extra_v = pair("extra", extra)
        layout(q=q, extra_k=extra_k, extra_v=extra_v)
        same(1, "keys", extra_k=extra_k, extra_v=extra_v)
        same(3, "channels a head", k=k, extra_k=extra_k)
        same(3, "channels a head", v=v, extra_v=extra_v)


def picture(q: Tensor, height: int, width: int, text: int) -> None:
    """Raise unless q's tokens are those of the text and of a picture of that size."""
    for title, size in (("height", height), ("width", width), ("text", text)):
        whole(title, size)
    if min(height, width) < 1 or text < 0:
        raise ValueError(
            f"a picture of {height} x {width} after {text} text tokens; sides are at least 1, text "
            "0"
        )
    if q.shape[1] != text + height * width:
        raise ValueError(
            f"{q.shape[1]} tokens; {text} of text and a picture of {height} x {width} make "
            f"{text + height * width}{_counted(q.shape[2], text + height * width)}"
        )


def tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    height: int,
    width: int,
    tile: int,
    text: int,
    scale: float | None,
    means: bool,
    threshold: float | None,
    return_share: bool,
) -> None:
    layout(q=q, k=k, v=v)
    same(1, "tokens", q=q, k=k, v=v)
    same(3, "channels a head", q=q, k=k)
    number("scale", 1.0 if scale is None else scale)
    whole("tile", tile)
    if tile < 1:
        raise ValueError(f"tile is {tile}; a tile has a side of 1 token at least")
    picture(q, height, width, text)
    number("threshold", 0.5 if threshold is None else threshold)
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be above 0, up to 1, or None")
    if return_share and not means:
        raise ValueError("return_share without means: the share of means is 0; pass means=True")
    tiles_read(kept, q, -(-height // tile) * -(-width // tile))


def tiles_read(kept: Tensor, q: Tensor, tiles: int) -> None:
    """Raise unless `kept` names tiles of keys for each tile of queries."""
    batch, _, heads, _ = q.shape
    if not isinstance(kept, Tensor) or kept.dtype != torch.int64:
        raise ValueError(f"kept is {_dtype(kept)}; it must be a tensor of torch.int64")
    if kept.ndim != 4 or tuple(kept.shape[:3]) != (batch, heads, tiles):
        raise ValueError(
            f"kept is {tuple(kept.shape)}; (batch, heads, tiles, count) is ({batch}, {heads}, "
            f"{tiles}, count)"
        )
    if not 1 <= kept.shape[3] <= tiles:
        raise ValueError(
            f"kept has {kept.shape[3]} tiles of keys a tile of queries; from 1 to {tiles} are there"
        )
    if kept.device != q.device:
        raise ValueError(f"kept is on {kept.device}, q on {q.device}; move one of them")
    if type(kept) is Tensor and kept.device.type == "cpu" and not torch.compiler.is_compiling():
        _numbers_tiles(kept, tiles)


def _numbers_tiles(kept: Tensor, tiles: int) -> None:
    """Raise for a tile that the picture has not; a GPU is not waited for to look."""
    if not kept.numel():
        return
    least, most = (int(number) for number in kept.aminmax())
    if least < 0 or most >= tiles:
        raise ValueError(f"kept has numbers from {least} to {most}; tiles are 0 to {tiles - 1}")


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
    bias("bias_in", bias_in, (batch, heads, count, keys), q)
    bias("bias_out", bias_out, (batch, heads, queries, count), q)


def bias(title: str, tensor: Tensor | None, shape: tuple[int, ...], q: Tensor) -> None:
    """Raise unless the bias is None or broadcasts to the scores of that shape."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        raise ValueError(
            f"{title} is {_dtype(tensor)}; it must be a floating-point tensor, -inf where nothing "
            "may be read"
        )
    sizes = (1,) * (4 - tensor.ndim) + tuple(tensor.shape)
    # compared one by one: torch.compile does not see that a size left open is in a tuple
    if len(sizes) > 4 or any(
        size != 1 and size != wanted for size, wanted in zip(sizes, shape, strict=True)
    ):
        raise ValueError(f"{title} is {tuple(tensor.shape)}; it must broadcast to {shape}")
    if tensor.device != q.device:
        raise ValueError(f"{title} is on {tensor.device}, q on {q.device}; move one of them")


def _dtype(value: Any) -> Any:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__
