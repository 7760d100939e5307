"""What the linear operators share: how they call `linattn_kernels.linear_attention`, and the N x N
definition.

- Sums over tokens are means, as published: the state and its normaliser keep their size at any
  resolution, and the epsilon means the same at 256 tokens and at 16,384.
- Every feature map is positive, so that the weights of a query are positive and sum to 1 up to the
  epsilon.
- `rope`: q and k come rotated. "map" is taken of them as they are; "numerator" divides by the sum
  of what they were before, so that the denominator stays a sum of positive numbers that positions
  do not touch. Without rotary positions the two are the same.
- `text`: "joint" reads text and picture in one sum. "exact" (MM-EDiT, arXiv 2503.16726) leaves
  softmax wherever text takes part, which costs tokens x text: a text token reads all by softmax, a
  picture token the picture linearly and the text by softmax, mixed by their shares of the tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention.base import common, scores
from linattn.attention.grid import Grid
from linattn.attention.options import Values, choice
from linattn_kernels import linear_attention

# What is added to the map. LiT's constant: a query with no positive entry still has a normaliser.
SHIFTS = {"elu1": 0.0, "relu": 1e-6}
JOINT = {
    "text": choice("joint", ("joint", "exact"), joint=True),
    "rope": choice("map", ("map", "numerator"), joint=True),
}
Rope = tuple[Tensor, Tensor]


def phi(x: Tensor, feature_map: str) -> Tensor:
    mapped = F.elu(x) + 1 if feature_map == "elu1" else x.relu()
    return mapped + SHIFTS[feature_map]


def unrotated(x: Tensor, rope: Rope) -> Tensor:
    """x (batch, tokens, heads, head_dim) as it was before its family rotated it."""
    cos, sin = (part.to(x.device)[:, None] for part in rope)  # (tokens, 1, head_dim)
    wide = x.to(common(x, least=torch.float32))  # diffusers' own function rounds float64 to float32
    even, odd = wide.unflatten(3, (-1, 2)).unbind(4)
    return (wide * cos + torch.stack([odd, -even], 4).flatten(3) * sin).to(x.dtype)


def read(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, values: Values, backend: str | None, heads: int
) -> Tensor:
    """Like v: one linear read with the tokens' channels regrouped to `heads`, text as the options
    say.
    """
    exact = bool(grid.text) and values.text == "exact"
    below = _below(q, k, values)
    first = grid.text if exact else 0
    linear = (
        each if each is None else _regrouped(each[:, first:], heads) for each in (q, k, v, *below)
    )
    out = _linear(*linear, values, backend).reshape(v[:, first:].shape)
    if not exact:
        return out
    share = grid.picture / grid.tokens
    picture = share * out + (1 - share) * _softmax(q[:, first:], k[:, :first], v[:, :first])
    return torch.cat([_softmax(q[:, :first], k, v), picture], 1)


def _linear(q, k, v, below_q, below_k, values: Values, backend: str | None) -> Tensor:
    how = {
        "feature_map": values.feature_map,
        "shift": SHIFTS[values.feature_map],
        "eps": values.eps,
    }
    normaliser = None if below_q is None else (below_q, below_k)
    return linear_attention(q, k, v, **how, normaliser=normaliser, backend=backend)


def _below(q: Tensor, k: Tensor, values: Values) -> tuple[Tensor | None, Tensor | None]:
    """Other queries and keys for the denominator, where there are such."""
    if values.position is None or values.rope == "map":
        return None, None
    return unrotated(q, values.position), unrotated(k, values.position)


def _regrouped(tensor: Tensor, heads: int) -> Tensor:
    return tensor.flatten(2).unflatten(2, (heads, -1))  # (batch, tokens, heads, channels / heads)


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (batch, heads, tokens, head_dim)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


# The definition
# ---------------------------------------------------------------------------------------------


def dense(q: Tensor, k: Tensor, grid: Grid, values: Values, heads: int) -> Tensor:
    """The N x N weights: of `heads` heads, or of the teacher's where text is exact."""
    below = [
        each if other is None else other
        for each, other in zip((q, k), _below(q, k, values), strict=True)
    ]
    if not grid.text or values.text == "joint":
        return linear_map(
            *(_regrouped(each, heads) for each in (q, k, *below)), values.feature_map, values.eps
        )
    text, share = grid.text, grid.picture / grid.tokens
    picture = (_regrouped(each[:, text:], heads) for each in (q, k, *below))
    linear = linear_map(*picture, values.feature_map, values.eps)
    weight = scores(q, k, q.shape[3] ** -0.5)  # (batch, heads, tokens, tokens)
    on_text = (1 - share) * weight[:, :, text:, :text].softmax(-1)
    on_picture = share * linear.repeat_interleave(q.shape[2] // heads, 1)
    return torch.cat([weight[:, :, :text].softmax(-1), torch.cat([on_text, on_picture], 3)], 2)


def linear_map(
    q: Tensor, k: Tensor, below_q: Tensor, below_k: Tensor, feature_map: str, eps: float
) -> Tensor:
    """(batch, heads, tokens, tokens); the last two are the denominator's queries and keys."""
    weights, below = (
        torch.einsum("bihd,bjhd->bhij", phi(one, feature_map), phi(two, feature_map))
        for one, two in ((q, k), (below_q, below_k))
    )
    tokens = k.shape[1]
    return weights / tokens / (below.sum(-1, keepdim=True) / tokens + eps)


def exact_pairs(grid: Grid, values: Values) -> int:
    """Query-key pairs that softmax keeps."""
    return grid.text * (grid.tokens + grid.picture) if values.text == "exact" else 0


def linear_tokens(grid: Grid, values: Values) -> int:
    return grid.picture if values.text == "exact" else grid.tokens
