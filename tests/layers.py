"""Operators and inputs that the tests of linattn/attention share."""

import torch
from torch import nn

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

SHAPE = LayerShape(width=16, heads=4, head_dim=4, has_text=True)
GRIDS = [
    Grid(height, width, text)
    for height, width in ((1, 1), (1, 7), (5, 3), (16, 16), (9, 13))
    for text in (0, 3)
]

# Each operator in its interesting forms; epsilons large enough to be seen.
FORMS = {
    "softmax": ("softmax", {}),
    "softmax-conv5": ("softmax", {"conv": 5}),
    "clear": ("clear", {"radius": 3}),
    "clear-fraction": ("clear", {"radius": 2.5, "proportional": True, "trained": 50}),
    "clear-single": ("clear", {"radius": 0.5}),
    "clear-default": ("clear", {}),
    "clear-pool2": ("clear", {"radius": 2, "pool": 2}),
    "clear-pool4": ("clear", {"radius": 4, "pool": 4, "proportional": True, "trained": 50}),
    "linfusion": ("linfusion", {"eps": 0.1}),
    "linfusion-relu": ("linfusion", {"eps": 0.1, "feature_map": "relu", "hidden": 0}),
    "linfusion-exact": ("linfusion", {"eps": 0.1, "text": "exact"}),
    "linfusion-numerator": ("linfusion", {"eps": 0.1, "rope": "numerator"}),
    "mediator": ("mediator", {"count": 9}),
    "mediator-default": ("mediator", {}),
    "mediator-6": ("mediator", {"count": 6, "conv": 0}),
    "mediator-factorised": ("mediator", {"count": (2, 3), "bias": "factorised"}),
    "mediator-full": ("mediator", {"count": 4, "bias": "full"}),
    "mediator-learned": ("mediator", {"count": 6, "bias": "full", "source": "learned"}),
    "lit": ("lit", {"eps": 0.1}),
    "lit-own-conv": ("lit", {"heads": 2, "kernel": 3, "shared_conv": False, "eps": 0.1}),
    "lit-elu": ("lit", {"heads": 4, "kernel": 0, "feature_map": "elu1"}),
    "lit-exact": ("lit", {"heads": 2, "eps": 0.1, "text": "exact"}),
    "lit-exact-numerator": ("lit", {"eps": 0.1, "text": "exact", "rope": "numerator"}),
}


def form(name: str, shape: LayerShape = SHAPE, **more):
    kind, options = FORMS[name]
    return shaken(create(kind, shape, **{**options, **more}))


def shaken(operator: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With every parameter away from zero: what starts at zero would hide its errors."""
    for parameter in operator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return operator.to(dtype)


def tensors(
    grid: Grid, shape: LayerShape = SHAPE, batch: int = 2, dtype=torch.float64, grad: bool = False
):
    """q, k, v."""
    made = torch.randn(3, batch, grid.tokens, shape.heads, shape.head_dim, dtype=torch.float64).to(
        dtype
    )
    return [tensor.clone().requires_grad_(grad) for tensor in made]


def rotation(grid: Grid, shape: LayerShape = SHAPE):
    """(cos, sin) of rotary positions, (tokens, head_dim): neighbouring channels turn together."""
    angles = torch.outer(
        torch.arange(grid.tokens), 0.3 ** torch.arange(shape.head_dim // 2, dtype=torch.float64)
    )
    angles = angles.repeat_interleave(2, 1)
    return angles.cos(), angles.sin()


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    reference = reference.double()
    return ((out.double() - reference).norm() / reference.norm()).item()
