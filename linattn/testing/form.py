"""A form: an operator with options in which the checks run it, and the inputs they run it with."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention import LayerShape, Operator
from linattn.attention.grid import Grid

SHAPE = LayerShape(width=16, heads=4, head_dim=4, has_text=True)
SIDES = ((1, 1), (1, 7), (5, 3), (16, 16), (9, 13), (33, 17))  # the last is above 512 tokens
GRIDS = [Grid(height, width, text) for height, width in SIDES for text in (0, 3)]


@dataclass(frozen=True)
class Form:
    """Name an operator with the options that a check runs it in."""

    operator: type[Operator]  # the class
    label: str = ""  # as in the operator's `forms`; empty for its defaults
    options: dict[str, Any] = field(default_factory=dict)  # values of the operator's options

    def __str__(self) -> str:
        return f"{self.operator.name}-{self.label}" if self.label else self.operator.name

    def __hash__(self) -> int:
        return hash(str(self))

    def build(self, shape: LayerShape = SHAPE, **options: Any) -> Operator:
        """Build the operator in float64, every parameter away from zero.

        What starts at zero would hide its errors.
        """
        return shaken(self.operator(shape, **{**self.options, **options}))


def forms(operator: type[Operator]) -> list[Form]:
    """List an operator's defaults and the forms that it names.

    Args:
        operator: the class whose `forms` are listed.
    """
    named = [Form(operator, label, options) for label, options in operator.forms.items()]
    return [Form(operator), *named]


def shaken(operator: Operator, seed: int = 0) -> Operator:
    """Draw every parameter, and return the operator in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in operator.parameters():
            nn.init.normal_(parameter, std=0.5)
    return operator.double()


def tensors(
    grid: Grid,
    shape: LayerShape = SHAPE,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    grad: bool = False,
    seed: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q, k and v, (batch, tokens, heads, head_dim)."""
    rng = torch.Generator().manual_seed(seed)
    size = (3, batch, grid.tokens, shape.heads, shape.head_dim)
    drawn = torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)
    q, k, v = (tensor.clone().requires_grad_(grad) for tensor in drawn)
    return q, k, v


def hidden(grid: Grid, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw hidden states, (batch, tokens, width)."""
    rng = torch.Generator().manual_seed(3)
    size = (batch, grid.tokens, SHAPE.width)
    return torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)


def rotation(grid: Grid, shape: LayerShape = SHAPE) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of rotary positions, (tokens, head_dim); neighbours turn together."""
    frequencies = 0.3 ** torch.arange(shape.head_dim // 2, dtype=torch.float64)
    angles = torch.outer(torch.arange(grid.tokens), frequencies).repeat_interleave(2, 1)
    return angles.cos(), angles.sin()


def relative(out: Tensor, reference: Tensor) -> float:
    """Return the error of `out` relative to the size of the reference."""
    reference = reference.double()
    return ((out.double() - reference).norm() / reference.norm()).item()
