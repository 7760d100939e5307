"""The projections of a layer, and which of its tokens and heads each of them serves."""

from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid

INWARD = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def inward(attn: Any) -> list[nn.Linear]:
    """List the Linears into heads; those of text have names of their own."""
    layers = (getattr(attn, name, None) for name in INWARD)
    return [writable(layer) for layer in layers if layer is not None]


def outward(attn: Any, grid: Grid) -> list[tuple[nn.Linear, slice]]:
    """List the Linears out of heads, each with the tokens that pass it.

    Where text has projections of its own, text and picture leave by two of them.
    """
    if getattr(attn, "to_out", None) is None:
        raise ValueError(
            f"this start writes the output projection, and a {type(attn).__name__} whose block "
            "projects for it has none: leave such layers out (layers='except:...'), or choose "
            "initialise 'all'"
        )
    of_text = getattr(attn, "to_add_out", None)
    if getattr(attn, "add_q_proj", None) is None:
        return [(writable(attn.to_out[0]), slice(None))]
    pairs = [(writable(attn.to_out[0]), slice(grid.text, None))]
    return pairs if of_text is None else [*pairs, (writable(of_text), slice(grid.text))]


def writable(linear: Any) -> nn.Linear:
    """Return a Linear of floating-point weights, or raise."""
    if not linear.weight.is_floating_point():
        raise ValueError(
            f"this start writes weights, and those of {type(linear).__name__} are "
            f"{linear.weight.dtype}: quantise after linearize, or choose initialise 'all'"
        )
    return linear


@torch.no_grad()
def reorder(attn: Any, grid: Grid, heads: list[int]) -> None:
    """Put a layer's heads into this order: rows into heads, columns out of them.

    Softmax attention of the layer computes what it did.
    """
    for linear in inward(attn):
        channels = channels_of(heads, linear.weight.shape[0], linear.weight.device)
        linear.weight.copy_(linear.weight[channels])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[channels])
    for linear, _ in outward(attn, grid):
        channels = channels_of(heads, linear.weight.shape[1], linear.weight.device)
        linear.weight.copy_(linear.weight[:, channels])


def channels_of(heads: list[int], channels: int, device: torch.device) -> Tensor:
    """Return the channels of these heads, in their order."""
    return torch.arange(channels, device=device).view(len(heads), -1)[heads].flatten()
