"""Define the four attentions: every score is written out. All other paths are judged by these.

- Tensors are (batch, tokens, heads, head_dim). Nothing here is fast, and memory grows with tokens
  squared.
- Sums over keys are means over the keys that count, so that state, normaliser and epsilon keep
  their size and meaning at any length and under any mask.
- Nothing is rounded on the way, whatever precision the inputs have: float64 in gives a result that
  is good to 1e-14.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu1": lambda x: F.elu(x) + 1,
    "relu": F.relu,
    "identity": lambda x: x,
    "relu2": lambda x: F.relu(x).square(),
}
SHAPES = ("disc", "square")


class State(NamedTuple):
    """Hold what linear attention keeps of its keys; `merge` joins the states of two parts.

    Args:
        values: (batch, heads, head_dim, value_dim), the mean of phi(k) v^T.
        keys: (batch, heads, head_dim), the mean of phi(k), or of phi(normaliser_k) where there is
            one.
        count: (batch,), how many keys the means are of.
    """

    values: Tensor
    keys: Tensor
    count: Tensor

    def merge(self, other: "State") -> "State":
        count = self.count + other.count
        weight = torch.where(count > 0, self.count / count.clamp_min(1), 0)
        weight = weight.view(-1, 1, 1)  # (batch, 1, 1)
        keys = weight * self.keys + (1 - weight) * other.keys
        weight = weight.unsqueeze(3)
        return State(weight * self.values + (1 - weight) * other.values, keys, count)


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
) -> Tensor | tuple[Tensor, State]:
    """Return o_i = mean_j w_ij v_j / (mean_j n_ij + eps), and 0 where the denominator is 0.

    Here w_ij = phi(q_i) . phi(k_j) with phi(t) = feature_map(t) + shift, and n_ij is the same of
    the normaliser's queries and keys, or w_ij where there are none. The arguments are those of
    `linattn_kernels.linear_attention`.
    """

    def phi(x: Tensor) -> Tensor:
        return FEATURE_MAPS[feature_map](x) + shift

    batch, keys = k.shape[:2]
    norm_q, norm_k = (q, k) if normaliser is None else normaliser
    k, v, norm_k = zero_masked(key_mask, k, v, norm_k)
    counts = k.new_ones(batch, keys) if key_mask is None else key_mask.to(k.dtype)  # (batch, keys)
    weights = torch.einsum("bihd,bjhd,bj->bhij", phi(q), phi(k), counts)
    den = torch.einsum("bihd,bjhd,bj->bhi", phi(norm_q), phi(norm_k), counts)
    num = torch.einsum("bhij,bjhe->bhie", weights, v)
    count = counts.sum(1)  # (batch,)
    if state is not None:
        earlier = state.count.to(k.dtype).view(-1, 1, 1)
        old_v, old_k = state.values.to(v.dtype), state.keys.to(k.dtype)
        num = num + earlier.unsqueeze(3) * torch.einsum("bihd,bhde->bhie", phi(q), old_v)
        den = den + earlier * torch.einsum("bihd,bhd->bhi", phi(norm_q), old_k)
        count = count + state.count
    count = count.clamp_min(1).view(-1, 1, 1)
    out = num / count.unsqueeze(3)  # (batch, heads, queries, value_dim)
    if normalise:
        den = (den / count + eps).unsqueeze(3)
        out = torch.where(den == 0, 0, out / torch.where(den == 0, 1, den))
    out = out.transpose(1, 2).contiguous()
    if not return_state:
        return out
    new = _state(phi, *(_at_least_float32(t) for t in (k, v, norm_k, counts)))
    return out, new if state is None else new.merge(state)


def _state(
    phi: Callable[[Tensor], Tensor], k: Tensor, v: Tensor, norm_k: Tensor, counts: Tensor
) -> State:
    count = counts.sum(1)
    weights = counts / count.clamp_min(1)[:, None]
    values = torch.einsum("bjhd,bjhe,bj->bhde", phi(k), v, weights)
    return State(values, torch.einsum("bjhd,bj->bhd", phi(norm_k), weights), count)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider: bfloat16 counts to 256 only."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def zero_masked(key_mask: Tensor | None, *keys: Tensor) -> tuple[Tensor, ...]:
    """Zero masked keys before the product, because 0 * NaN is NaN.

    Each tensor is (batch, keys, heads, dim).
    """
    if key_mask is None:
        return keys
    hidden = ~key_mask[:, :, None, None]
    return tuple(tensor.masked_fill(hidden, 0) for tensor in keys)


def window_mask(height: int, width: int, radius: float, shape: str = "disc") -> Tensor:
    """Return (queries, keys) of a picture, True where the key lies strictly inside the radius."""
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r}; choose one of {', '.join(SHAPES)}")
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return inside(y[:, None] - y, x[:, None] - x, radius, shape)


def inside(dy: Tensor, dx: Tensor, radius: float, shape: str) -> Tensor:
    """Return where whole distances lie in a window.

    The squares are compared in float64, where that of sqrt(2) is above 2.
    """
    if shape == "square":
        return (dy.abs() < radius) & (dx.abs() < radius)
    return dy.double() ** 2 + dx.double() ** 2 < radius * radius


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Return softmax attention in which a picture token sees the tokens of a window around it.

    The first `text` tokens see all tokens and are seen by all. The arguments are those of
    `linattn_kernels.window_attention`.
    """
    tokens = text + height * width
    lengths = [tensor.shape[1] for tensor in (q, k, v)]
    if any(length != tokens for length in lengths):
        raise ValueError(
            f"{tokens} tokens make {text} of text and a picture of {height} x {width}; q, k, v "
            f"have {', '.join(map(str, lengths))}"
        )
    visible = torch.ones(tokens, tokens, dtype=torch.bool)
    visible[text:, text:] = window_mask(height, width, radius, shape)
    if extra is not None:
        extra_k, extra_v = extra
        k, v = torch.cat([k, extra_k], 1), torch.cat([v, extra_v], 1)
        extra_visible = torch.ones(tokens, extra_k.shape[1], dtype=torch.bool)
        extra_visible[:text] = False
        visible = torch.cat([visible, extra_visible], 1)  # (tokens, tokens + extra)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    scores = scores.masked_fill(~visible.to(q.device), -math.inf)
    out = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v).contiguous()
    return (out, scores.logsumexp(-1)) if return_lse else out


def tile_numbers(height: int, width: int, tile: int) -> Tensor:
    """Return the number of each token's tile, (height * width,), tiles counted row by row."""
    row, column = torch.arange(height) // tile, torch.arange(width) // tile
    return (row[:, None] * -(-width // tile) + column).flatten()


def tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kept: Tensor,
    *,
    height: int,
    width: int,
    tile: int,
    text: int = 0,
    scale: float | None = None,
    means: bool = False,
    threshold: float | None = None,
    return_lse: bool = False,
    return_share: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Return softmax attention of tiles of queries to the tiles of keys that each of them keeps.

    The arguments are those of `linattn_kernels.tile_attention`.
    """
    number = tile_numbers(height, width, tile).to(q.device)
    member = F.one_hot(number, kept.shape[2]).to(q.dtype)  # (picture, tiles)
    nothing = torch.zeros(*kept.shape[:3], kept.shape[2], dtype=torch.bool, device=q.device)
    reads = nothing.scatter(3, kept, True)[:, :, number]  # (batch, heads, picture, tiles)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    hidden = F.pad(~reads[..., number], (text, 0, text, 0))
    scores = scores.masked_fill(hidden, -math.inf)  # (batch, heads, tokens, tokens)
    mean_k, mean_v = (
        torch.einsum("jt,bjhd->bthd", member / member.sum(0), x[:, text:]) for x in (k, v)
    )
    coarse = torch.einsum("bihd,bthd->bhit", q, mean_k) * scale
    hidden = F.pad(reads if means else torch.ones_like(reads), (0, 0, text, 0), value=True)
    coarse = coarse.masked_fill(hidden, -math.inf)  # (batch, heads, tokens, tiles)
    if threshold is not None:
        both = torch.cat([scores, coarse], 3)
        small = both < both.amax(3, keepdim=True) + math.log(threshold)
        small[:, :, :text], small[:, :, :, :text] = False, False
        scores, coarse = both.masked_fill(small, -math.inf).split(
            [*scores.shape[3:], len(member.T)], 3
        )
    both = torch.cat([scores, coarse + member.sum(0).log()], 3)
    weights = both.softmax(3)
    out = torch.einsum("bhij,bjhe->bihe", weights, torch.cat([v, mean_v], 1)).contiguous()
    share = weights[..., v.shape[1] :].sum(3)
    returned = (out, *[both.logsumexp(3)] * return_lse, *[share] * return_share)
    return returned if len(returned) > 1 else out


def mediator_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mediators: Tensor,
    *,
    scale: float | None = None,
    bias_in: Tensor | None = None,
    bias_out: Tensor | None = None,
) -> Tensor:
    """Return what queries read of mediators, which themselves read all keys.

    The arguments are those of `linattn_kernels.mediator_attention`.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    scores_in = torch.einsum("bmhd,bjhd->bhmj", mediators, k) * scale
    scores_in = scores_in if bias_in is None else scores_in + bias_in
    gathered = torch.einsum("bhmj,bjhe->bmhe", softmax(scores_in), v)
    scores_out = torch.einsum("bihd,bmhd->bhim", q, mediators) * scale
    scores_out = scores_out if bias_out is None else scores_out + bias_out
    return torch.einsum("bhim,bmhe->bihe", softmax(scores_out), gathered).contiguous()


def softmax(scores: Tensor) -> Tensor:
    """Return softmax over the last dimension, and 0 where all scores are -inf."""
    nothing = scores.amax(-1, keepdim=True) == -math.inf
    return scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
