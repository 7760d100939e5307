"""Normalised linear attention, o_i = phi(q_i) . sum_j phi(k_j) v_j / normaliser, and its feature maps.

- Sums over tokens are means, as published: the state and its normaliser keep their size at any resolution, and the
  epsilon means the same at 256 tokens and at 16,384.
- Every feature map is positive, so that the weights of a query are positive and sum to 1 up to the epsilon.
- The state is head_dim x head_dim a head; no tensor has more than tokens x channels numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def elu1(x: Tensor) -> Tensor:
    return F.elu(x).add_(1)  # in place: a pass over memory less, and elu's backward needs x only


def relu(x: Tensor) -> Tensor:
    # LiT's constant: a query with no positive entry still has a normaliser. threshold is ReLU, but saves x, not the
    # result, which the addition overwrites.
    return F.threshold(x, 0, 0).add_(1e-6)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {"elu1": elu1, "relu": relu}


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """q, k after the feature map, all (batch, tokens, heads, head_dim)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, heads, tokens, head_dim)
    tokens = k.shape[2]
    state = k.transpose(2, 3) @ v / tokens  # (batch, heads, head_dim, head_dim)
    normaliser = q @ k.mean(2).unsqueeze(3) + eps  # (batch, heads, tokens, 1)
    return (q @ state).div_(normaliser).transpose(1, 2)


def linear_map(q: Tensor, k: Tensor, eps: float) -> Tensor:
    """The N x N weights of the same, (batch, heads, tokens, tokens)."""
    weights = torch.einsum("bihd,bjhd->bhij", q, k)
    tokens = k.shape[1]
    return weights / tokens / (weights.sum(-1, keepdim=True) / tokens + eps)
