"""The definitions: every score is written out, in whatever precision the inputs have. They judge
all other paths.

- Tensors are (batch, tokens, heads, head_dim). Nothing here is fast, and memory grows with tokens
  squared.
- Sums over keys are means over the keys that count, so that state, normaliser and epsilon keep
  their size and meaning at any length and under any mask.
- Nothing is rounded on the way: give float64 and the result is good to 1e-14.
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
    """All that linear attention keeps of its keys; `merge` joins those of two parts of a sequence."""

    values: Tensor  # (batch, heads, head_dim, value_dim): mean of phi(k) v^T
    # (batch, heads, head_dim): mean of phi(k), of the normaliser's keys where there are such
    keys: Tensor
    count: Tensor  # (batch,): how many keys

    def merge(self, other: "State") -> "State":
        count = self.count + other.count
        # (batch, 1, 1)
        share = torch.where(count > 0, self.count / count.clamp_min(1), 0).view(-1, 1, 1)
        keys = share * self.keys + (1 - share) * other.keys
        share = share.unsqueeze(3)
        return State(share * self.values + (1 - share) * other.values, keys, count)


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
    """o_i = mean_j w_ij v_j / (mean_j n_ij + eps), w_ij = phi(q_i) . phi(k_j), phi(t) =
    feature_map(t) + shift.

    `normaliser`: the queries and keys of n; w's own unless given (RoPE on the numerator only).
    `key_mask` (batch, keys) is True where a key counts; what the others are, NaN too, changes
    nothing. `state`: keys seen elsewhere, joined to these. 0 where the denominator is 0.
    """

    def phi(x: Tensor) -> Tensor:
        return FEATURE_MAPS[feature_map](x) + shift

    batch, keys = k.shape[:2]
    below_q, below_k = (q, k) if normaliser is None else normaliser
    k, v, below_k = shown(key_mask, k, v, below_k)
    counts = k.new_ones(batch, keys) if key_mask is None else key_mask.to(k.dtype)  # (batch, keys)
    weights = torch.einsum("bihd,bjhd,bj->bhij", phi(q), phi(k), counts)
    below = torch.einsum("bihd,bjhd,bj->bhi", phi(below_q), phi(below_k), counts)
    above = torch.einsum("bhij,bjhe->bhie", weights, v)
    count = counts.sum(1)  # (batch,)
    if state is not None:
        more = state.count.to(k.dtype).view(-1, 1, 1)
        above = above + more.unsqueeze(3) * torch.einsum("bihd,bhde->bhie", phi(q), state.values)
        below = below + more * torch.einsum("bihd,bhd->bhi", phi(below_q), state.keys)
        count = count + state.count
    whole = count.clamp_min(1).view(-1, 1, 1)
    out = above / whole.unsqueeze(3)  # (batch, heads, queries, value_dim)
    if normalise:
        bottom = (below / whole + eps).unsqueeze(3)
        out = torch.where(bottom == 0, 0, out / torch.where(bottom == 0, 1, bottom))
    out = out.transpose(1, 2).contiguous()
    if not return_state:
        return out
    k, v, below_k, counts = (
        each.to(torch.promote_types(each.dtype, torch.float32)) for each in (k, v, below_k, counts)
    )
    own = counts.sum(1)  # bfloat16 counts to 256
    share = counts / own.clamp_min(1)[:, None]
    kept = State(
        torch.einsum("bjhd,bjhe,bj->bhde", phi(k), v, share),
        torch.einsum("bjhd,bj->bhd", phi(below_k), share),
        own,
    )
    return out, kept if state is None else kept.merge(state)


def shown(key_mask: Tensor | None, *keys: Tensor | None) -> tuple[Tensor | None, ...]:
    """Zero masked keys before the product, because 0 * NaN is NaN. Each is (batch, keys, heads,
    dim).
    """
    if key_mask is None:
        return keys
    hidden = ~key_mask[:, :, None, None]
    return tuple(None if each is None else each.masked_fill(hidden, 0) for each in keys)


def window_mask(height: int, width: int, radius: float, shape: str = "disc") -> Tensor:
    """(tokens, tokens) of a picture, True where the row's token sees the column's: strictly inside
    the radius.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r}; choose one of {', '.join(SHAPES)}")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    dy, dx = (places.flatten()[:, None] - places.flatten() for places in (rows, columns))
    return inside(dy, dx, radius, shape)


def inside(dy: Tensor, dx: Tensor, radius: float, shape: str) -> Tensor:
    """Whether whole distances lie in a window; in float64, since the square of sqrt(2) is above 2
    there.
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
    """Softmax attention of picture tokens over a window around them; the first `text` tokens see
    and are seen by all.

    `extra`: keys and values that every picture token sees, and no text token (CLEAR's pooled ones).
    The log-sum-exp is (batch, heads, tokens).
    """
    tokens = text + height * width
    if any(t.shape[1] != tokens for t in (q, k, v)):
        raise ValueError(
            f"{tokens} tokens make {text} of text and a picture of {height} x {width}; q, k, v "
            "have "
            f"{', '.join(str(t.shape[1]) for t in (q, k, v))}"
        )
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    seen[text:, text:] = window_mask(height, width, radius, shape)
    if extra is not None:
        k, v = (torch.cat([own, more], 1) for own, more in zip((k, v), extra, strict=True))
        others = torch.ones(tokens, extra[0].shape[1], dtype=torch.bool)
        others[:text] = False
        seen = torch.cat([seen, others], 1)  # (tokens, tokens + extra)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (
        q.shape[3] ** -0.5 if scale is None else scale
    )
    scores = scores.masked_fill(~seen.to(q.device), -math.inf)
    out = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v).contiguous()
    return (out, scores.logsumexp(-1)) if return_lse else out


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
    """The mediators (batch, count, heads, head_dim) read all keys, and the queries read the
    mediators.

    Biases are added to the scores: `bias_in` to (batch, heads, count, keys), `bias_out` to (batch,
    heads, queries, count), or what broadcasts to them. Who may read nothing, all scores being -inf,
    reads 0.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    reading = torch.einsum("bmhd,bjhd->bhmj", mediators, k) * scale
    reading = reading if bias_in is None else reading + bias_in
    told = torch.einsum("bhmj,bjhe->bmhe", softmax(reading), v)  # (batch, count, heads, value_dim)
    asking = torch.einsum("bihd,bmhd->bhim", q, mediators) * scale
    asking = asking if bias_out is None else asking + bias_out
    return torch.einsum("bhim,bmhe->bihe", softmax(asking), told).contiguous()


def softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, and 0 where all are -inf."""
    nothing = scores.amax(-1, keepdim=True) == -math.inf
    return scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
