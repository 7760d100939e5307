"""What the linear operators share: the call of linattn_kernels.linear_attention, its definition.

- Sums over tokens are means, as published: the state and its normaliser keep their size at any
  resolution, and the epsilon means the same at 256 tokens and at 16,384.
- Every feature map is positive, so that the weights of a query are positive and sum to 1 up to the
  epsilon, unless `normaliser`, `rope="after"` or gates have it otherwise.
- `normaliser`: "divide" by the denominator phi(q) z, where z is the mean of phi(k). "subtract"
  (LINA, arXiv 2601.22630) adds (1 - phi(q) z) mean(v) instead: the weights still sum to 1, and may
  be negative. "none" (LinFusion's ablation) leaves the means as they are. Neither has an epsilon.
- `rope`: q and k come rotated. "map" is taken of them as they are; "numerator" divides by the sum
  of what they were before, so that the denominator stays a sum of positive numbers that positions
  do not touch; "after" (SANA-Video, arXiv 2509.24695) maps what they were before, and rotates the
  features of the numerator alone. Without rotary positions the three are the same.
- `gate`: learned factors of keys and values (gate.py), stored for gate x gate tokens. A convolution
  sees values without them, and so does the softmax of text="exact".
- `text`: "joint" reads text and picture in one sum. "exact" (MM-EDiT, arXiv 2503.16726) leaves
  softmax wherever text takes part, which costs tokens x text: a text token reads all by softmax, a
  picture token the picture linearly and the text by softmax, mixed by their shares of the tokens.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.attention.base import LayerShape, after_text, attend, common, scores
from linattn.attention.gate import Gate
from linattn.attention.grid import Grid
from linattn.attention.options import Values, also, choice, whole
from linattn_kernels import linear_attention

# What is added to the map. LiT's constant: a query with no positive entry still has a normaliser.
SHIFTS = {"elu1": 0.0, "relu": 1e-6}
JOINT = {
    "text": choice("joint", ("joint", "exact"), needs="text"),
    "rope": choice("map", ("map", "numerator", "after"), needs="rotation"),
    "normaliser": also(choice("divide", ("divide", "subtract", "none")), "normalise"),
    "gate": whole(0, least=0, scheduled=False),
}
PUBLISHED = {"normaliser": "divide", "gate": 0}
Rope = tuple[Tensor, Tensor]


def refuse_idle_rope(owner: str, values: Values) -> None:
    """Refuse a `rope` that is about a denominator, where the normaliser has none."""
    if values.normaliser != "divide" and values.rope != "map":
        raise ValueError(
            f"{owner}: rope={values.rope!r} says what the denominator reads, and "
            f"normaliser={values.normaliser!r} has none: leave one of them out"
        )


def gate_of(shape: LayerShape, values: Values, heads: int) -> Gate | None:
    """Make the gate of a layer, for the tokens that it reads linearly; None without one."""
    reads_text = shape.has_text and values.text == "joint"
    return Gate(heads, values.gate, reads_text) if values.gate else None


def phi(x: Tensor, feature_map: str) -> Tensor:
    mapped = F.elu(x) + 1 if feature_map == "elu1" else x.relu()
    return mapped + SHIFTS[feature_map]


def rotated(x: Tensor, rope: Rope) -> Tensor:
    """Rotate x (batch, tokens, heads, head_dim) as its family does."""
    cos, sin = (angles.to(x.device)[:, None] for angles in rope)  # (tokens, 1, head_dim)
    # diffusers' own function rounds float64 to float32
    wide = x.to(common(x, least=torch.float32))
    even, odd = wide.unflatten(3, (-1, 2)).unbind(4)
    return (wide * cos + torch.stack([-odd, even], 4).flatten(3) * sin).to(x.dtype)


def unrotated(x: Tensor, rope: Rope) -> Tensor:
    """Return x (batch, tokens, heads, head_dim) as it was before its family rotated it."""
    cos, sin = rope
    return rotated(x, (cos, -sin))


def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    values: Values,
    backend: str | None,
    heads: int,
    gate: Gate | None,
) -> Tensor:
    """Compute linear attention, shaped like v, with the tokens' channels regrouped to `heads`.

    Text is read as the options `text` and `rope` say.
    """
    exact = is_exact(grid, values)
    text = grid.text if exact else 0
    read_k, read_v = k[:, text:], v[:, text:]
    if gate is not None:
        factors = gate(grid, grid.text - text, common(k, least=torch.float32))
        read_k, read_v = (_gated(*pair) for pair in zip((read_k, read_v), factors, strict=True))
    out = _linear(q[:, text:], read_k, read_v, _without_text(values, text), backend, heads)
    return beside_text(out, q, k, v, grid) if exact else out


def is_exact(grid: Grid, values: Values) -> bool:
    """Return whether text takes part by softmax."""
    return bool(grid.text) and values.text == "exact"


def beside_text(linear: Tensor, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Return what all tokens read, shaped like v, where text takes part by softmax.

    `linear` is what the picture's tokens read of the picture, (batch, picture, heads, head_dim).
    """
    text, share = grid.text, grid.picture / grid.tokens
    words = attend(q[:, text:], k[:, :text], v[:, :text], q.shape[3] ** -0.5)
    return after_text(q, k, v, grid, share * linear + (1 - share) * words)


def _linear(
    q: Tensor, k: Tensor, v: Tensor, values: Values, backend: str | None, heads: int
) -> Tensor:
    """Read all of the tokens linearly."""
    mean = None
    if values.normaliser == "subtract":
        # phi(q) z mean(v) is what phi(q) reads of the mean: taken off v, it is subtracted.
        mean = v.mean(1, keepdim=True, dtype=common(v, least=torch.float32))
        v = (v - mean).to(v.dtype)
    feature_map, shift = values.feature_map, SHIFTS[values.feature_map]
    denominator = _denominator(q, k, values)
    if denominator is not None and values.rope == "after":
        q_den, k_den = (phi(tensor, feature_map) for tensor in denominator)
        q, k = rotated(q_den, values.position), rotated(k_den, values.position)
        denominator, feature_map, shift = (q_den, k_den), "identity", 0.0
    if denominator is not None:
        q_den, k_den = denominator
        denominator = _regrouped(q_den, heads), _regrouped(k_den, heads)
    out = linear_attention(
        _regrouped(q, heads),
        _regrouped(k, heads),
        _regrouped(v, heads),
        feature_map=feature_map,
        shift=shift,
        eps=values.eps,
        normalise=values.normaliser == "divide",
        normaliser=denominator,
        backend=backend,
    )
    out = cast(Tensor, out).reshape(v.shape)  # without the denominators
    return out if mean is None else out + mean


def _denominator(q: Tensor, k: Tensor, values: Values) -> tuple[Tensor, Tensor] | None:
    """Return the queries and keys of the denominator, where they are not those of the numerator."""
    if values.position is None or values.rope == "map":
        return None
    return unrotated(q, values.position), unrotated(k, values.position)


def _without_text(values: Values, text: int) -> Values:
    """Return the options with the positions of what follows the text."""
    if values.position is None:
        return values
    return values.replace({"position": tuple(angles[text:] for angles in values.position)})


def _gated(tensor: Tensor, factors: Tensor) -> Tensor:
    """Multiply each of the gate's heads by its factors, (tokens, heads, 1)."""
    regrouped = _regrouped(tensor, factors.shape[1])
    return (regrouped * factors).to(tensor.dtype).reshape(tensor.shape)


def _regrouped(tensor: Tensor, heads: int) -> Tensor:
    return tensor.flatten(2).unflatten(2, (heads, -1))  # (batch, tokens, heads, channels / heads)


# The definition
# ---------------------------------------------------------------------------------------------


def dense(
    q: Tensor, k: Tensor, grid: Grid, values: Values, heads: int, gate: Gate | None
) -> Tensor:
    """Return the N x N weights: of `heads` heads, or of the teacher's where text is exact."""
    exact = is_exact(grid, values)
    text = grid.text if exact else 0
    read_k, factors = k[:, text:], None
    if gate is not None:
        of_keys, of_values = gate.definition(grid, grid.text - text, k.dtype)
        read_k = (_regrouped(read_k, heads) * of_keys).reshape(read_k.shape)
        factors = of_values.squeeze(2).T  # (heads, tokens)
    linear = _linear_weights(q[:, text:], read_k, _without_text(values, text), heads)
    if factors is not None:
        linear = linear * factors.unsqueeze(1)
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


def _linear_weights(q: Tensor, k: Tensor, values: Values, heads: int) -> Tensor:
    """Return what all tokens read of all linearly, (batch, heads, tokens, tokens)."""
    (num_q, den_q), (num_k, den_k) = (_features(tensor, values) for tensor in (q, k))
    num, den = _products(num_q, num_k, heads), _products(den_q, den_k, heads)
    return normalised(num, den, values.normaliser, values.eps)


def _features(x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
    """Return the features of the numerator and of the denominator, like x."""
    if values.position is None or values.rope == "map":
        mapped = phi(x, values.feature_map)
        return mapped, mapped
    before = phi(unrotated(x, values.position), values.feature_map)
    if values.rope == "after":
        return rotated(before, values.position), before
    return phi(x, values.feature_map), before


def _products(q: Tensor, k: Tensor, heads: int) -> Tensor:
    return scores(_regrouped(q, heads), _regrouped(k, heads), 1.0)


def normalised(num: Tensor, den: Tensor, normaliser: str, eps: float) -> Tensor:
    """Return the weights of products of features, (batch, heads, tokens, tokens)."""
    tokens = num.shape[3]
    weights, total = num / tokens, den.sum(-1, keepdim=True) / tokens
    if normaliser == "divide":
        return weights / (total + eps)
    if normaliser == "subtract":
        return weights + (1 - total) / tokens
    return weights


# Costs
# ---------------------------------------------------------------------------------------------


def uncounted(grid: Grid, values: Values, channels: int, gate: Gate | None) -> int:
    """Count the denominator and the gate's resizing: products here, and free in the papers."""
    denominator = linear_tokens(grid, values) * channels if values.normaliser == "divide" else 0
    return denominator + (0 if gate is None else gate.products(grid))


def exact_pairs(grid: Grid, values: Values) -> int:
    """Count the query-key pairs that softmax keeps."""
    return text_pairs(grid) if values.text == "exact" else 0


def text_pairs(grid: Grid) -> int:
    """Count the query-key pairs in which text takes part."""
    return grid.text * (grid.tokens + grid.picture)


def linear_tokens(grid: Grid, values: Values) -> int:
    """Count the tokens that are read linearly."""
    return grid.picture if values.text == "exact" else grid.tokens
