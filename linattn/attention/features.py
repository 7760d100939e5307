"""What the linear operators ask of `linattn_kernels.linear_attention`, and the N x N definition it is judged by.

- Sums over tokens are means, as published: the state and its normaliser keep their size at any resolution, and the
  epsilon means the same at 256 tokens and at 16,384.
- Every feature map is positive, so that the weights of a query are positive and sum to 1 up to the epsilon.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# What is added to the map. LiT's constant: a query with no positive entry still has a normaliser.
SHIFTS = {"elu1": 0.0, "relu": 1e-6}


def phi(x: Tensor, feature_map: str) -> Tensor:
    mapped = F.elu(x) + 1 if feature_map == "elu1" else x.relu()
    return mapped + SHIFTS[feature_map]


def linear_map(q: Tensor, k: Tensor, feature_map: str, eps: float) -> Tensor:
    """The N x N weights, (batch, heads, tokens, tokens)."""
    weights = torch.einsum("bihd,bjhd->bhij", phi(q, feature_map), phi(k, feature_map))
    tokens = k.shape[1]
    return weights / tokens / (weights.sum(-1, keepdim=True) / tokens + eps)
