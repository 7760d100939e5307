"""What is small, in the fewest calls and left to autograd: at 256 tokens on a CPU calls are what
takes the time.

- Forward and backward at (1, 256, 4, 32), two cores: linear 2.5 ms as operations of our own and 1.4
  so, a window of radius 4 4.9 in tiles and 1.2 as one attention with a mask.
- Larger ones, and what is traced or compiled, are operations: pieces, tiles and constant memory.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn_kernels import launch
from linattn_kernels.reference import State, shown, window_mask
from linattn_kernels.window_torch import TILE, attention, heads_first

# Where pieces and tiles are level, forward and backward on one core: numbers a tensor, and keys, or
# twice as many as a tile reads (1,024 tokens of 10 x 64 at radius 4: 105 ms dense, 37 in tiles; at
# 16, where a tile reads all, 107 and 157).
NUMBERS, KEYS = 1 << 19, 256
SCORES = 1 << 20  # a mask's, which is kept


def is_eager(q: Tensor) -> bool:
    """Say whether this is an eager CPU call.

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
    reach = TILE + 2 * (math.ceil(min(radius, height + width)) - 1)  # of a tile, in each direction
    read = keys - height * width + min(reach, height) * min(reach, width)
    few = keys <= max(KEYS, 2 * read)
    return is_eager(q) and not return_lse and few and q.shape[1] * keys <= SCORES


@launch.exact
def linear_attention(
    q, k, v, below_q, below_k, mask, state, feature_map, shift, eps, normalise, return_state
):
    dtype = launch.wide(q.dtype)

    def phi(x: Tensor) -> Tensor:
        return _phi(x.to(dtype), feature_map, shift).transpose(1, 2)  # (batch, heads, tokens, dim)

    q, k, v, below_q, below_k = launch.once(q, k, v, below_q, below_k)
    k, v, below_k = shown(mask, k, v, below_k)
    above, value = phi(k), heads_first(v, dtype)
    counted = above if below_k is None else phi(below_k)
    whole = _state(above, counted, value, mask)
    whole = whole if state is None else whole.merge(State(*launch.once(*state)))
    asked = phi(q)
    out = asked @ whole.values
    if normalise:
        other = asked if below_q is None else phi(below_q)
        bottom = other @ whole.keys.unsqueeze(3) + eps  # (batch, heads, tokens, 1)
        if eps <= 0 or shift < 0 or feature_map == "identity":  # else it is above 0
            bottom = bottom.masked_fill(bottom == 0, math.inf)
        out = out.div_(bottom)
    out = _tokens_first(out, q.dtype)
    return (out, whole) if return_state else out


@launch.exact
def window_attention(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale):
    own, dtype = q.dtype, launch.wide(q.dtype)
    q, k, v, extra_k, extra_v = launch.once(q, k, v, extra_k, extra_v)
    extra = 0 if extra_k is None else extra_k.shape[1]
    if extra:
        k, v = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
    mask = _mask(height, width, radius, text, extra, shape, dtype)
    q, k, v = (heads_first(launch.unit(each), dtype) for each in (q, k, v))
    out = attention(q, k, v, mask, scale)
    return _tokens_first(out, own)


def _tokens_first(out: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, heads, tokens, dim) -> (batch, tokens, heads, dim) in one piece of memory, as
    operations give it.
    """
    return out.transpose(1, 2).to(dtype).contiguous()


def _state(above: Tensor, counted: Tensor, value: Tensor, mask: Tensor | None) -> State:
    """Means over the keys that count."""
    batch, _, tokens, _ = above.shape
    if mask is None and tokens:
        values = above.transpose(2, 3) @ value / tokens
        return State(values, counted.mean(2), above.new_full((batch,), tokens))
    counts = above.new_ones(batch, tokens) if mask is None else mask.to(above.dtype)
    count = counts.sum(1)
    share = (counts / count.clamp_min(1)[:, None])[:, None, :, None]  # (batch, 1, tokens, 1)
    return State((above * share).transpose(2, 3) @ value, (counted * share).sum(2), count)


def _phi(x: Tensor, feature_map: str, shift: float) -> Tensor:
    if feature_map == "elu1":
        return F.elu(x).add_(1 + shift)
    if feature_map != "identity":
        # relu that keeps its input, not its result: what follows may be in place
        x = F.threshold(x, 0, 0)
        x = x.square() if feature_map == "relu2" else x
        return x.add_(shift) if shift else x
    return x + shift if shift else x


@functools.lru_cache(maxsize=16)
def _mask(
    height: int, width: int, radius: float, text: int, extra: int, shape: str, dtype: torch.dtype
) -> Tensor:
    """(text + picture, text + picture + extra), to be added to the scores; 4 MB at most."""
    with torch.inference_mode(False):  # it outlives the call
        seen = torch.ones(text + height * width, text + height * width + extra, dtype=torch.bool)
        seen[text:, text : text + height * width] = window_mask(height, width, radius, shape)
        seen[:text, text + height * width :] = False
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -math.inf)
