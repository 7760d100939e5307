"""Linear attention in PyTorch, piece by piece: beside inputs and outputs it holds no more than a
piece of the sequence.

- Siblings of `linear_triton`: state, read and their backwards, the same arguments and results.
- A piece is copied heads first once and mapped in place, so that no product copies it again, and
  the pass that divides a result also writes it. At 16,384 tokens, 8 heads of 64, two cores: .16 s
  forward and backward, .30 s by autograd.
- In float32 or wider inside: a call in bfloat16 takes 1.7 to .5 times what the published form takes
  in it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch

# Numbers at a time: near the core what a piece needs stays in its cache, elsewhere a launch must be
# worth while.
PIECE, LARGE = 1 << 19, 1 << 25


def phi_(x: Tensor, feature_map: str, shift: float) -> Tensor:
    """The feature map and its shift, in place."""
    if feature_map == "elu1":
        return F.elu(x, inplace=True).add_(1 + shift)
    if feature_map == "identity":
        return x.add_(shift) if shift else x
    x = x.clamp_min_(0) if feature_map == "relu" else x.clamp_min_(0).square_()
    return x.add_(shift) if shift else x


def pulled(grad: Tensor, x: Tensor, feature_map: str) -> Tensor:
    """A gradient taken back through the feature map at x."""
    if feature_map == "elu1":
        return torch.ops.aten.elu_backward(grad, 1, 1, 1, False, x)
    if feature_map == "relu":
        return torch.ops.aten.threshold_backward(grad, x, 0)
    return grad * x.clamp_min(0).mul_(2) if feature_map == "relu2" else grad


def _pieces(like: Tensor) -> Iterator[slice]:
    """Of the tokens of a tensor (batch, tokens, heads, dim)."""
    batch, tokens, heads, dim = like.shape
    most = PIECE if like.device.type == "cpu" else LARGE
    size = max(64, most // max(1, batch * heads * dim))
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _heads(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, tokens, heads, dim) -> (batch, heads, tokens, dim), a copy in one piece of memory."""
    turned = tensor.transpose(1, 2)
    return torch.empty(turned.shape, dtype=dtype, device=tensor.device).copy_(turned)


@launch.exact
def state(k, v, below, mask, feature_map, shift):
    batch, tokens, heads, dim = k.shape
    dtype = launch.wide(k.dtype)
    values = k.new_zeros(batch, heads, dim, v.shape[3], dtype=dtype)
    keys = k.new_zeros(batch, heads, dim, dtype=dtype)
    count = k.new_full((batch,), tokens, dtype=dtype) if mask is None else mask.to(dtype).sum(1)
    for piece in _pieces(k):
        above = phi_(_heads(k[:, piece], dtype), feature_map, shift)  # (batch, heads, tokens, dim)
        counted = (
            above if below is None else phi_(_heads(below[:, piece], dtype), feature_map, shift)
        )
        value = _heads(v[:, piece], dtype)
        if mask is not None:
            for each in {above, counted, value}:
                each.masked_fill_(~mask[:, None, piece, None], 0)
        values += above.transpose(2, 3) @ value
        keys += counted.sum(2)
    share = (1 / count.clamp_min(1)).view(-1, 1, 1)
    return values.mul_(share.unsqueeze(3)), keys.mul_(share), count


@launch.exact
def state_backward(d_values, d_keys, count, k, v, below, mask, feature_map, shift):
    dtype = d_values.dtype
    share = (1 / count.clamp_min(1)).view(-1, 1, 1)
    # (batch, heads, 1, dim)
    d_values, d_keys = d_values * share.unsqueeze(3), (d_keys * share).unsqueeze(2)
    dk, dv = launch.like(k), launch.like(v)
    d_below = k.new_empty(0) if below is None else launch.like(below)
    for piece in _pieces(k):
        x, value = _heads(k[:, piece], dtype), _heads(v[:, piece], dtype)
        above = value @ d_values.transpose(2, 3)
        above = above.add_(d_keys) if below is None else above
        _write(dk[:, piece], pulled(above, x, feature_map))
        _write(dv[:, piece], phi_(x, feature_map, shift) @ d_values)
        if below is not None:
            other = _heads(below[:, piece], dtype)
            _write(d_below[:, piece], pulled(d_keys.expand_as(other), other, feature_map))
    if mask is not None:
        for each in (dk, dv) if below is None else (dk, dv, d_below):
            each.masked_fill_(~mask[:, :, None, None], 0)
    return dk, dv, d_below


def _write(place: Tensor, found: Tensor, factor: Tensor | None = None) -> None:
    """Into (batch, tokens, heads, dim) what is heads first, times a factor of every token where
    there is one.
    """
    if factor is None:
        place.copy_(found.transpose(1, 2))
    elif place.dtype == found.dtype:
        torch.mul(found.transpose(1, 2), factor.transpose(1, 2), out=place)
    else:
        place.copy_((found * factor).transpose(1, 2))


@launch.exact
def read(q, below, values, keys, feature_map, shift, eps, normalise):
    dtype = values.dtype
    out = q.new_empty(*q.shape[:3], values.shape[3])
    for piece in _pieces(q):
        asked = phi_(_heads(q[:, piece], dtype), feature_map, shift)
        inverse = None
        if normalise:
            other = (
                asked if below is None else phi_(_heads(below[:, piece], dtype), feature_map, shift)
            )
            inverse = _inverse(other @ keys.unsqueeze(3) + eps)  # (batch, heads, tokens, 1)
        _write(out[:, piece], asked @ values, inverse)
    return out


@launch.exact
def read_backward(grad, q, below, values, keys, feature_map, shift, eps, normalise):
    dtype = values.dtype
    d_values, d_keys = torch.zeros_like(values), torch.zeros_like(keys)
    dq, d_below = launch.like(q), q.new_empty(0) if below is None else launch.like(below)
    for piece in _pieces(q):
        x, told = _heads(q[:, piece], dtype), _heads(grad[:, piece], dtype)
        asked = phi_(x.clone(), feature_map, shift)
        slopes = told @ values.transpose(2, 3)  # (batch, heads, tokens, dim)
        if not normalise:
            d_values += asked.transpose(2, 3) @ told
            _write(dq[:, piece], pulled(slopes, x, feature_map))
            if below is not None:
                d_below[:, piece] = 0
            continue
        z = x if below is None else _heads(below[:, piece], dtype)
        other = asked if below is None else phi_(z.clone(), feature_map, shift)
        inverse = _inverse(other @ keys.unsqueeze(3) + eps)  # (batch, heads, tokens, 1)
        # the denominator's gradient
        bottom = (asked * slopes).sum(3, keepdim=True).mul_(inverse.square()).neg_()
        slopes = slopes.mul_(inverse)
        d_keys += (bottom.transpose(2, 3) @ other).squeeze(2)
        d_values += asked.mul_(inverse).transpose(2, 3) @ told
        if below is None:
            slopes = slopes.addcmul_(bottom, keys.unsqueeze(2))
        else:
            _write(d_below[:, piece], pulled(bottom * keys.unsqueeze(2), z, feature_map))
        _write(dq[:, piece], pulled(slopes, x, feature_map))
    return dq, d_below, d_values, d_keys


def _inverse(bottom: Tensor) -> Tensor:
    """1 / bottom, and 0 where it is 0."""
    return torch.where(bottom == 0, 0, 1 / torch.where(bottom == 0, 1, bottom))
