"""What a family is: which layers a model has, and how to read grid and noise from a call of its
forward.

- Grid and noise travel with the call, as one entry of the keyword dictionary that diffusers hands
  down to every attention. Nothing is stored between calls, so two forwards before one backward,
  gradient checkpointing (whose recomputation gets the arguments of its own forward), threads and
  deepcopy have nothing to mix up.
- The grid travels as the shape of an empty tensor: torch.compile then treats its sides as dynamic
  sizes, where plain integers would cost two graphs a size (measured; the fifth size hit the
  recompile limit).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.base import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.families.processors import Processor, SelfAttention

# the operator's name in its attention, and the context's among the attention's arguments
KEY = "linattn"


@dataclass(frozen=True)
class Context:
    """What the layers of one forward share; a UNet's levels have one each."""

    sides: Tensor  # empty; its shape is (height, width, 1 + text)
    noise: Tensor | None  # (batch,) in [0, 1], 1 is pure noise

    @classmethod
    def of(cls, grid: Grid, noise: Tensor | None, like: Tensor) -> "Context":
        return cls(like.new_empty(1, 1, 1).expand(grid.height, grid.width, 1 + grid.text), noise)

    @property
    def grid(self) -> Grid:
        height, width, text = self.sides.shape
        return Grid(height, width, text - 1)


@dataclass(frozen=True)
class Layer:
    """One self-attention of a model."""

    name: str  # as in named_modules
    attn: nn.Module
    shape: LayerShape
    processor: type[Processor] = SelfAttention

    @property
    def index(self) -> int:
        return self.shape.index

    @property
    def operator(self) -> Operator | None:
        return getattr(self.attn, KEY, None)


Found = tuple[str, nn.Module, type[Processor], int | None]


class Family:
    """What differs between the families; `model` is always of a class that `FAMILIES` names."""

    # the argument that diffusers passes on to every attention
    handed_down = "cross_attention_kwargs"
    rotates = False  # whether its queries and keys carry rotary positions

    def attentions(self, model: nn.Module) -> Iterator[Found]:
        """Name, module, processor and trained tokens of every self-attention, in the order the
        forward meets them.
        """
        raise NotImplementedError

    def read(
        self, model: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Grid, Tensor | None, Tensor]:
        """Grid, noise and a tensor on the right device, from the arguments of the model's forward."""
        raise NotImplementedError

    def example(
        self, model: nn.Module, side: int | None, batch: int, noise: float
    ) -> dict[str, Tensor]:
        """Arguments for a forward of pictures with latents side x side, on the model's device and
        in its dtype.
        """
        raise NotImplementedError

    def levels(self, model: nn.Module) -> list[nn.Module]:
        """Modules below which another grid holds: that of the first argument, (batch, channels,
        height, width).
        """
        return []

    def layers(self, model: nn.Module) -> list[Layer]:
        return [
            Layer(name, attn, layer_shape(attn, index, trained, processor.has_text), processor)
            for index, (name, attn, processor, trained) in enumerate(self.attentions(model))
        ]

    def context(self, model: nn.Module, arguments: Mapping[str, Any]) -> Context:
        """A caller who knows better hands one down."""
        given = (arguments.get(self.handed_down) or {}).get(KEY)
        return Context.of(*self.read(model, arguments)) if given is None else given


def layer_shape(attn: nn.Module, index: int, trained: int | None, has_text: bool) -> LayerShape:
    return LayerShape(
        attn.query_dim, attn.heads, attn.inner_dim // attn.heads, has_text, index, trained
    )


def noise_level(timestep: Any, sample: Tensor, steps: int = 1000) -> Tensor | None:
    """(batch,) noise levels in [0, 1] from timesteps in [0, steps]: one for all, or one a sample."""
    if timestep is None:
        return None
    timestep = torch.as_tensor(timestep, device=sample.device).flatten().float()
    return (timestep / steps).expand(sample.shape[0])


def latents(model: nn.Module, side: int | None, batch: int, patch: int = 1) -> Tensor:
    """Empty ones, (batch, channels, side, side)."""
    side = model.config.sample_size if side is None else side
    if side < patch or side % patch:
        raise ValueError(
            f"latents of side {side} cannot be cut into patches of {patch}; choose a multiple"
        )
    return next(model.parameters()).new_zeros(batch, model.config.in_channels, side, side)


def timesteps(noise: float, batch: int, device: torch.device, steps: int = 1000) -> Tensor:
    return torch.full((batch,), min(steps - 1, round(noise * steps)), device=device)
