"""Small inputs in PyTorch, in the fewest calls and left to autograd.

- At 256 tokens on a CPU the calls themselves take most of the time. Forward and backward at
  (1, 256, 4, 32), two cores: linear 2.5 ms as operations of our own, 1.4 here; a window of radius 4
  4.9 ms in tiles, 1.2 as one attention with a mask.
- Larger inputs, and what is traced or compiled, go to the operations: pieces, tiles and bounded
  memory.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.reference import State, window_mask, zero_masked
from linattn_kernels.window_torch import TILE, attention, heads_first

# Where this path and the operations take the same time, forward and backward on one core: numbers a
# tensor, and keys, or twice as many keys as a tile reads (1,024 tokens of 10 x 64 at radius 4:
# 105 ms dense, 37 in tiles; at 16, where a tile reads all, 107 and 157).
NUMBERS, KEYS = 1 << 19, 256
SCORES = 1 << 20  # of a mask, which is cached


def is_eager(q: Tensor) -> bool:
    """Return whether this is an eager CPU call.

    Under torch.compile or a dispatch mode (FlopCounterMode) the custom operation is used at every
    size, so that tools see one operation.
    """
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    return q.device.type == "cpu" and type(q) in (Tensor, nn.Parameter) and not watched


def fits_linear(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return is_eager(q) and max(q.numel(), k.numel(), v.numel()) < NUMBERS


def fits_window(
    q: Tensor, extra: Tensor | None, height: int, width: int, radius: float, return_lse: bool
) -> bool:
    keys = q.shape[1] + (0 if extra is None else extra.shape[1])
    side = TILE + 2 * (math.ceil(min(radius, height + width)) - 1)  # of what a tile reads
    read = keys - height * width + min(side, height) * min(side, width)
    few = keys <= max(KEYS, 2 * read)
    return is_eager(q) and not return_lse and few and q.shape[1] * keys <= SCORES


@launch.without_autocast
def linear_attention(
    q, k, v, norm_q, norm_k, mask, state, feature_map, shift, eps, normalise, return_state
):
    dtype = launch.acc_dtype(q.dtype)

    def phi(x: Tensor) -> Tensor:
        return _phi(x.to(dtype), feature_map, shift).transpose(1, 2)  # (batch, heads, tokens, dim)

    q, k, v, norm_q, norm_k = launch.first_order_only(q, k, v, norm_q, norm_k)
    k, v = zero_masked(mask, k, v)
    phi_k, value = phi(k), heads_first(v, dtype)
    phi_norm_k = phi_k
    if norm_k is not None:
        phi_norm_k = phi(*zero_masked(mask, norm_k))
    merged = _state(phi_k, phi_norm_k, value, mask)
    if state is not None:
        merged = merged.merge(State(*launch.first_order_only(*state)))
    phi_q = phi(q)
    out = phi_q @ merged.values
    if normalise:
        phi_norm_q = phi_q if norm_q is None else phi(norm_q)
        den = phi_norm_q @ merged.keys.unsqueeze(3) + eps  # (batch, heads, tokens, 1)
        if eps <= 0 or shift < 0 or feature_map == "identity":  # else it is above 0
            den = den.masked_fill(den == 0, math.inf)
        out = out.div_(den)
    out = _tokens_first(out, q.dtype)
    return (out, merged) if return_state else out


@launch.without_autocast
def window_attention(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale):
    out_dtype, dtype = q.dtype, launch.acc_dtype(q.dtype)
    q, k, v, extra_k, extra_v = launch.first_order_only(q, k, v, extra_k, extra_v)
    extra = 0 if extra_k is None else extra_k.shape[1]
    if extra:
        k, v = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
    mask = _mask(height, width, radius, text, extra, shape, dtype)
    q, k, v = (heads_first(launch.unit_stride(tensor), dtype) for tensor in (q, k, v))
    out = attention(q, k, v, mask, scale)
    return _tokens_first(out, out_dtype)


def _tokens_first(out: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (batch, heads, tokens, dim) as a contiguous (batch, tokens, heads, dim)."""
    return out.transpose(1, 2).to(dtype).contiguous()


def _state(phi_k: Tensor, phi_norm_k: Tensor, value: Tensor, mask: Tensor | None) -> State:
    """Return the means over the keys that count."""
    batch, _, tokens, _ = phi_k.shape
    if mask is None and tokens:
        values = phi_k.transpose(2, 3) @ value / tokens
        return State(values, phi_norm_k.mean(2), phi_k.new_full((batch,), tokens))
    counts = phi_k.new_ones(batch, tokens) if mask is None else mask.to(phi_k.dtype)
    count = counts.sum(1)
    weights = (counts / count.clamp_min(1)[:, None])[:, None, :, None]  # (batch, 1, tokens, 1)
    values = (phi_k * weights).transpose(2, 3) @ value
    return State(values, (phi_norm_k * weights).sum(2), count)


def _phi(x: Tensor, feature_map: str, shift: float) -> Tensor:
    if feature_map == "elu1":
        return F.elu(x).add_(1 + shift)
    if feature_map != "identity":
        # F.threshold saves its input for the backward and not its result, as F.relu does: so what
        # follows may be in place.
        x = F.threshold(x, 0, 0)
        x = x.square() if feature_map == "relu2" else x
        return x.add_(shift) if shift else x
    return x + shift if shift else x


@functools.lru_cache(maxsize=16)
def _mask(
    height: int, width: int, radius: float, text: int, extra: int, shape: str, dtype: torch.dtype
) -> Tensor:
    """Return what is added to the scores (text + picture, text + picture + extra), 4 MB at most."""
    tokens = text + height * width
    with torch.inference_mode(False):  # the cached mask outlives the call
        visible = torch.ones(tokens, tokens + extra, dtype=torch.bool)
        visible[text:, text:tokens] = window_mask(height, width, radius, shape)
        visible[:text, tokens:] = False
        return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)
