"""What the linear operators share: the call of linattn_kernels.linear_attention, its definition.

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

from typing import cast

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
    "text": choice("joint", ("joint", "exact"), needs="text"),
    "rope": choice("map", ("map", "numerator"), needs="rotation"),
}
Rope = tuple[Tensor, Tensor]


def phi(x: Tensor, feature_map: str) -> Tensor:
    mapped = F.elu(x) + 1 if feature_map == "elu1" else x.relu()
    return mapped + SHIFTS[feature_map]


def unrotated(x: Tensor, rope: Rope) -> Tensor:
    """Return x (batch, tokens, heads, head_dim) as it was before its family rotated it."""
    cos, sin = (angles.to(x.device)[:, None] for angles in rope)  # (tokens, 1, head_dim)
    # diffusers' own function rounds float64 to float32
    rotated = x.to(common(x, least=torch.float32))
    even, odd = rotated.unflatten(3, (-1, 2)).unbind(4)
    return (rotated * cos + torch.stack([odd, -even], 4).flatten(3) * sin).to(x.dtype)


def read(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, values: Values, backend: str | None, heads: int
) -> Tensor:
    """Compute linear attention, shaped like v, with the tokens' channels regrouped to `heads`.

    Text is read as the options `text` and `rope` say.
    """
    exact = is_exact(grid, values)
    denominator = _denominator(q, k, values)
    text = grid.text if exact else 0
    if denominator is not None:
        q_den, k_den = denominator
        denominator = _regrouped(q_den[:, text:], heads), _regrouped(k_den[:, text:], heads)
    out = linear_attention(
        _regrouped(q[:, text:], heads),
        _regrouped(k[:, text:], heads),
        _regrouped(v[:, text:], heads),
        feature_map=values.feature_map,
        shift=SHIFTS[values.feature_map],
        eps=values.eps,
        normaliser=denominator,
        backend=backend,
    )
    out = cast(Tensor, out).reshape(v[:, text:].shape)  # without the denominators
    return beside_text(out, q, k, v, grid) if exact else out


def is_exact(grid: Grid, values: Values) -> bool:
    """Return whether text takes part by softmax."""
    return bool(grid.text) and values.text == "exact"


def beside_text(linear: Tensor, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Return what all tokens read, shaped like v, where text takes part by softmax.

    `linear` is what the picture's tokens read of the picture, (batch, picture, heads, head_dim).
    """
    text, share = grid.text, grid.picture / grid.tokens
    picture = share * linear + (1 - share) * _softmax(q[:, text:], k[:, :text], v[:, :text])
    return torch.cat([_softmax(q[:, :text], k, v), picture], 1)


def _denominator(q: Tensor, k: Tensor, values: Values) -> tuple[Tensor, Tensor] | None:
    """Return the queries and keys of the denominator, where they are not those of the numerator."""
    if values.position is None or values.rope == "map":
        return None
    return unrotated(q, values.position), unrotated(k, values.position)


def _regrouped(tensor: Tensor, heads: int) -> Tensor:
    return tensor.flatten(2).unflatten(2, (heads, -1))  # (batch, tokens, heads, channels / heads)


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, heads, tokens, head_dim)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


# The definition
# ---------------------------------------------------------------------------------------------


def dense(q: Tensor, k: Tensor, grid: Grid, values: Values, heads: int) -> Tensor:
    """Return the N x N weights: of `heads` heads, or of the teacher's where text is exact."""
    exact = is_exact(grid, values)
    text = grid.text if exact else 0
    q_den, k_den = _denominator(q, k, values) or (q, k)
    linear = linear_map(
        _regrouped(q[:, text:], heads),
        _regrouped(k[:, text:], heads),
        _regrouped(q_den[:, text:], heads),
        _regrouped(k_den[:, text:], heads),
        values.feature_map,
        values.eps,
    )
    return map_beside_text(linear, q, k, grid) if exact else linear


def map_beside_text(linear: Tensor, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
    """Return the map of all tokens, where text takes part by softmax.

    `linear` is the map of the picture, (batch, maps, picture, picture): one for some heads or for
    some channels of one, and what is returned has the larger number of maps.
    """
    text, share = grid.text, grid.picture / grid.tokens
    weight = scores(q, k, q.shape[3] ** -0.5)  # (batch, heads, tokens, tokens)
    maps = max(linear.shape[1], weight.shape[1])
    linear, weight = (t.repeat_interleave(maps // t.shape[1], 1) for t in (linear, weight))
    of_text = weight[:, :, :text].softmax(-1)
    on_text = (1 - share) * weight[:, :, text:, :text].softmax(-1)
    of_picture = torch.cat([on_text, share * linear], 3)
    return torch.cat([of_text, of_picture], 2)


def linear_map(
    q: Tensor, k: Tensor, q_den: Tensor, k_den: Tensor, feature_map: str, eps: float
) -> Tensor:
    """Return (batch, heads, tokens, tokens); q_den and k_den are those of the denominator."""
    tokens = k.shape[1]
    weights = _products(q, k, feature_map)
    denominator = _products(q_den, k_den, feature_map).sum(-1, keepdim=True)
    return weights / tokens / (denominator / tokens + eps)


def _products(q: Tensor, k: Tensor, feature_map: str) -> Tensor:
    return torch.einsum("bihd,bjhd->bhij", phi(q, feature_map), phi(k, feature_map))


# Costs
# ---------------------------------------------------------------------------------------------


def denominator_products(grid: Grid, values: Values, channels: int) -> int:
    """Count the products of the denominator: a matrix product here, and free in the papers."""
    return linear_tokens(grid, values) * channels


def exact_pairs(grid: Grid, values: Values) -> int:
    """Count the query-key pairs that softmax keeps."""
    return text_pairs(grid) if values.text == "exact" else 0


def text_pairs(grid: Grid) -> int:
    """Count the query-key pairs in which text takes part."""
    return grid.text * (grid.tokens + grid.picture)


def linear_tokens(grid: Grid, values: Values) -> int:
    """Count the tokens that are read linearly."""
    return grid.picture if values.text == "exact" else grid.tokens
