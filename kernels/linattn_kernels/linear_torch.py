"""Linear attention in PyTorch, piece by piece: beside inputs and outputs it holds no more than a piece of the sequence.

Siblings of `linear_triton`: state, read and their backwards, the same arguments and results.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from linattn_kernels import launch, reference

PIECE = 2048  # tokens at a time: what a piece needs stays near the core


def phi(x: Tensor, feature_map: str, shift: float) -> Tensor:
    mapped = reference.FEATURE_MAPS[feature_map](x)
    return mapped if shift == 0 else mapped + shift


def slope(x: Tensor, feature_map: str) -> Tensor | float:
    """The derivative of the feature map at x."""
    if feature_map == "elu1":
        return x.clamp_max(0).exp()
    if feature_map == "relu":
        return (x > 0).to(x.dtype)
    return 2 * x.clamp_min(0) if feature_map == "relu2" else 1.0


def _pieces(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, PIECE):
        yield slice(start, start + PIECE)


def _heads(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, tokens, heads, dim) -> (batch, heads, tokens, dim)."""
    return tensor.to(dtype).transpose(1, 2)


def _shown(mask: Tensor, piece: slice, dtype: torch.dtype) -> Tensor:
    return mask[:, piece].to(dtype)[:, None, :, None]  # (batch, 1, tokens, 1)


@launch.exact
def state(k, v, below, mask, feature_map, shift):
    batch, tokens, heads, dim = k.shape
    dtype = launch.wide(k.dtype)
    values = k.new_zeros(batch, heads, dim, v.shape[3], dtype=dtype)
    keys = k.new_zeros(batch, heads, dim, dtype=dtype)
    count = k.new_full((batch,), tokens, dtype=dtype) if mask is None else mask.to(dtype).sum(1)
    for piece in _pieces(tokens):
        above = phi(_heads(k[:, piece], dtype), feature_map, shift)  # (batch, heads, tokens, dim)
        counted = above if below is None else phi(_heads(below[:, piece], dtype), feature_map, shift)
        if mask is not None:
            shown = _shown(mask, piece, dtype)
            above, counted = above * shown, counted * shown
        values += above.transpose(2, 3) @ _heads(v[:, piece], dtype)
        keys += counted.sum(2)
    share = (1 / count.clamp_min(1)).view(-1, 1, 1)
    return values * share.unsqueeze(3), keys * share, count


@launch.exact
def state_backward(d_values, d_keys, count, k, v, below, mask, feature_map, shift):
    dtype = d_values.dtype
    share = (1 / count.clamp_min(1)).view(-1, 1, 1)
    d_values, d_keys = d_values * share.unsqueeze(3), (d_keys * share).unsqueeze(2)  # (batch, heads, 1, dim)
    dk, dv = launch.like(k), launch.like(v)
    d_below = k.new_empty(0) if below is None else launch.like(below)
    for piece in _pieces(k.shape[1]):
        x, value = _heads(k[:, piece], dtype), _heads(v[:, piece], dtype)
        shown = 1.0 if mask is None else _shown(mask, piece, dtype)
        above = value @ d_values.transpose(2, 3)
        above = above + d_keys if below is None else above
        dk[:, piece] = (above * slope(x, feature_map) * shown).transpose(1, 2)
        dv[:, piece] = (phi(x, feature_map, shift) @ d_values * shown).transpose(1, 2)
        if below is not None:
            other = _heads(below[:, piece], dtype)
            d_below[:, piece] = (d_keys * slope(other, feature_map) * shown).expand_as(other).transpose(1, 2)
    return dk, dv, d_below


@launch.exact
def read(q, below, values, keys, feature_map, shift, eps, normalise):
    dtype = values.dtype
    out = q.new_empty(*q.shape[:3], values.shape[3])
    for piece in _pieces(q.shape[1]):
        asked = phi(_heads(q[:, piece], dtype), feature_map, shift)
        read = asked @ values  # (batch, heads, tokens, value_dim)
        if normalise:
            other = asked if below is None else phi(_heads(below[:, piece], dtype), feature_map, shift)
            read = read.mul_(_inverse(other @ keys.unsqueeze(3) + eps))
        out[:, piece] = read.transpose(1, 2)
    return out


@launch.exact
def read_backward(grad, q, below, values, keys, feature_map, shift, eps, normalise):
    dtype = values.dtype
    d_values, d_keys = torch.zeros_like(values), torch.zeros_like(keys)
    dq, d_below = launch.like(q), q.new_empty(0) if below is None else launch.like(below)
    for piece in _pieces(q.shape[1]):
        x, told = _heads(q[:, piece], dtype), _heads(grad[:, piece], dtype)
        asked = phi(x, feature_map, shift)
        slopes = told @ values.transpose(2, 3)  # (batch, heads, tokens, dim)
        if not normalise:
            d_values += asked.transpose(2, 3) @ told
            dq[:, piece] = slopes.mul_(slope(x, feature_map)).transpose(1, 2)
            if below is not None:
                d_below[:, piece] = 0
            continue
        z = x if below is None else _heads(below[:, piece], dtype)
        other = asked if below is None else phi(z, feature_map, shift)
        inverse = _inverse(other @ keys.unsqueeze(3) + eps)  # (batch, heads, tokens, 1)
        bottom = -(asked * slopes).sum(3, keepdim=True) * inverse.square()  # the denominator's gradient
        slopes = slopes.mul_(inverse)
        if below is None:
            slopes = slopes.addcmul_(bottom, keys.unsqueeze(2))
        else:
            d_below[:, piece] = (bottom * keys.unsqueeze(2) * slope(z, feature_map)).transpose(1, 2)
        dq[:, piece] = slopes.mul_(slope(x, feature_map)).transpose(1, 2)
        d_keys += (bottom.transpose(2, 3) @ other).squeeze(2)
        d_values += (asked * inverse).transpose(2, 3) @ told
    return dq, d_below, d_values, d_keys


def _inverse(bottom: Tensor) -> Tensor:
    """1 / bottom, and 0 where it is 0."""
    return torch.where(bottom == 0, 0, 1 / torch.where(bottom == 0, 1, bottom))
