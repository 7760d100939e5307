"""Which heads of the teacher an operator with fewer heads merges.

LiT joins neighbours: of four heads and two, the first two become one. Both starts here only change
the order of the heads, in which softmax would compute the same.

- `alike` joins heads with similar maps, by the cosine of the flattened maps, as the diagnostics
  measure it: a merged head adds the products of its parts, and these then agree.
- `important` gives every merged head one of the heads that matter most, by the L1 change of the
  layer's output without a head (after arXiv 2110.03252, which prunes by it): two of them in one
  merged head would share its single denominator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.attention.activations import Activations
from linattn.attention.projections import outward, reorder

ROWS = 256  # queries whose maps are held at once


def alike(operator: Any, attn: nn.Module, activations: Activations) -> None:
    """Order the heads so that those with similar maps are merged."""
    count = merged(operator)
    q, k, _ = activations.qkv()
    reorder(attn, activations.grid, grouped(likeness(q, k), count))


def important(operator: Any, attn: nn.Module, activations: Activations) -> None:
    """Order the heads so that the most important ones are merged with less important ones."""
    count = merged(operator)
    reorder(attn, activations.grid, dealt(importance(attn, activations), count))


def merged(operator: Any) -> int:
    """Return how many heads the operator has, or raise if whole heads are not merged."""
    heads, count = operator.shape.heads, operator.shape.channels // operator.head_dim
    if count == heads or heads % count:
        raise ValueError(
            f"{operator.name} has {count} heads where the layer has {heads}, so no whole heads are "
            "merged: choose fewer heads that divide the layer's, or initialise 'all'"
        )
    return count


@torch.no_grad()
def likeness(q: Tensor, k: Tensor) -> Tensor:
    """Return the cosine of every two heads' flattened maps over the batch, (heads, heads)."""
    total: Any = 0.0
    for query, key in zip(q.float().split(1), k.float().split(1), strict=True):
        for rows in query.split(ROWS, 1):
            weights = torch.einsum("bihd,bjhd->bhij", rows, key) * q.shape[3] ** -0.5
            maps = weights.softmax(-1)  # (1, heads, rows, tokens)
            flat = maps[0].flatten(1).double()
            total = total + flat @ flat.T
    sizes = total.diagonal().sqrt()
    return total / (sizes[:, None] * sizes)


def grouped(cosines: Tensor, count: int) -> list[int]:
    """Return the heads' order in which `count` groups of neighbours are alike.

    The first head that is left takes the ones that are most alike to it.
    """
    left, order = list(range(len(cosines))), []
    size = len(cosines) // count
    for _ in range(count):
        first = left[0]
        nearest = sorted(left, key=lambda head: (head != first, -cosines[first, head].item()))
        order += nearest[:size]
        left = [head for head in left if head not in order]
    return order


@torch.no_grad()
def importance(attn: nn.Module, activations: Activations) -> Tensor:
    """Return the mean L1 change of the layer's output without each head, (heads,)."""
    q, k, v = activations.qkv()
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v)  # (batch, heads, tokens, head_dim)
    changes: Any = 0.0
    for linear, tokens in outward(attn, activations.grid):
        columns = linear.weight.unflatten(1, (q.shape[1], -1)).unbind(1)  # (width, head_dim) each
        pairs = zip(mixed[:, :, tokens].unbind(1), columns, strict=True)
        changes = changes + torch.stack([(head @ w.T).abs().sum() for head, w in pairs])
    return changes / (mixed.shape[0] * mixed.shape[2])


def dealt(importances: Tensor, count: int) -> list[int]:
    """Return the order in which `count` groups get the heads in turn, the most important first.

    Every other round runs backwards, so that the sums of the groups are near one another.
    """
    ranked = importances.argsort(descending=True, stable=True).tolist()
    groups: list[list[int]] = [[] for _ in range(count)]
    for start in range(0, len(ranked), count):
        turn: Sequence[list[int]] = groups if start // count % 2 == 0 else groups[::-1]
        for group, head in zip(turn, ranked[start : start + count], strict=True):
            group.append(head)
    return [head for group in groups for head in group]
