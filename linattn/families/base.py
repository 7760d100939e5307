"""What a family is: which layers a model has, how grid and noise are read from a call of its
forward, and how it is conditioned.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linattn.attention.base import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.families.conditions import Conditions
from linattn.families.processors import Attention, Processor, SelfAttention

# the operator's name in its attention, and the context's among the attention's arguments
KEY = "linattn"
TEXT = 8  # tokens of text in an example
SERVED = "softmax without conv alone serves them, for it reads no grid"

Model = Any  # a diffusers model; torch takes every attribute of a module for a tensor or a module


@dataclass(frozen=True)
class Context:
    """Hold what the layers of one forward share; a UNet's levels have a context each."""

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
    """Hold one self-attention of a model."""

    name: str  # as in named_modules
    attn: Attention  # diffusers' attention module
    shape: LayerShape  # width, heads, text and number of the layer
    # what diffusers calls in the layer once it is linearised
    processor: type[Processor] = SelfAttention

    @property
    def index(self) -> int:
        return self.shape.index

    @property
    def operator(self) -> Operator | None:
        return getattr(self.attn, KEY, None)


class Slot(NamedTuple):
    """Name a self-attention that an operator can replace."""

    name: str  # as in named_modules
    attn: Attention
    processor: type[Processor]
    trained: int | None = None  # tokens at the size the model was trained at, where that is known


class Gridless(ValueError):
    """Report picture tokens that do not lie on one grid."""


class Family:
    """Say how one kind of model differs from the others.

    `model` is always of a class that `registry.FAMILIES` names.
    """

    backbone = ""  # its name in the head of a table
    models = ""  # the models that are of this family, as their users call them
    # how the model is told what to draw; None: it is converted, saved and looked into, not drawn
    conditions: type[Conditions] | None = None
    sample = "hidden_states"  # the forward's argument for the noisy latents, or for their tokens
    times = 1000  # the time that is pure noise, as the forward takes it
    # the argument that diffusers passes on to every attention
    handed_down = "cross_attention_kwargs"
    rotates = False  # whether queries and keys carry rotary positions
    squares_only = False  # whether the model draws nothing but squares
    packs = False  # whether a token is a cell of 2 x 2 latents; `example` then counts in tokens
    prompt_tokens = 0  # of a prompt, as the family's pipelines encode it by default
    clip_tokens = 0  # of CLIP's, beside those that a card's text_length counts

    def attentions(self, model: Model) -> Iterator[Slot]:
        """Yield every self-attention in the order in which the forward meets them."""
        raise NotImplementedError

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        """Return the grid of a forward's arguments, or raise Gridless or another ValueError."""
        raise NotImplementedError

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        """Return a forward's arguments for latents side x side, in the model's dtype and device."""
        raise NotImplementedError

    def levels(self, model: Model) -> list[Any]:
        """Return the modules below which another grid holds.

        It is the grid of their first argument, (batch, channels, height, width).
        """
        return []

    def conditions_of(self, pipe: Any, card: Mapping[str, Any]) -> Conditions:
        """Return the conditions of a pipeline of this family, or raise a ValueError."""
        if self.conditions is None:
            raise ValueError(
                f"{type(pipe).__name__} is of a family that linattn converts, saves and looks "
                f"into, but does not draw with: {type(self).__name__} has no conditions"
            )
        return self.conditions(pipe, card)

    def text_tokens(self, length: int | None = None) -> int:
        """Return the tokens of text of a picture, with a card's text_length or by default."""
        return self.clip_tokens + (self.prompt_tokens if length is None else length)

    def layers(self, model: Model) -> list[Layer]:
        """Return every self-attention, numbered in the order of `attentions`."""
        return [_layer(index, slot) for index, slot in enumerate(self.attentions(model))]

    def context(self, model: Model, arguments: Mapping[str, Any]) -> Context:
        """Return the caller's context, or else one of the caller's grid or the arguments'."""
        handed = (arguments.get(self.handed_down) or {}).get(KEY)
        if isinstance(handed, Context):
            return handed
        sample = required(model, arguments, self.sample)
        grid = handed if isinstance(handed, Grid) else self._grid(model, arguments)
        return Context.of(grid, noise_level(arguments.get("timestep"), sample, self.times), sample)

    def _grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        """Return the grid, or one row of tokens for operators that do not read it."""
        try:
            return self.grid(model, arguments)
        except Gridless:
            operators = [layer.operator for layer in self.layers(model)]
            if any(operator is None or operator.reads_grid for operator in operators):
                raise
        text = required(model, arguments, "encoder_hidden_states").shape[1]
        return Grid(1, arguments[self.sample].shape[1], text)


def _layer(index: int, slot: Slot) -> Layer:
    attn = slot.attn
    head_dim = attn.inner_dim // attn.heads
    has_text = slot.processor.has_text
    shape = LayerShape(attn.query_dim, attn.heads, head_dim, has_text, index, slot.trained)
    return Layer(slot.name, attn, shape, slot.processor)


def required(model: Model, arguments: Mapping[str, Any], name: str) -> Any:
    """Return an argument of the forward, or raise a ValueError where the call lacks it.

    Args:
        model: the model that is called.
        arguments: the arguments of the call by name.
        name: of an argument from which the grid is read.
    """
    if arguments.get(name) is None:
        raise ValueError(
            f"{type(model).__name__} was called without {name}, from which its operators read how "
            "the tokens lie: pass it as diffusers' pipeline does"
        )
    return arguments[name]


def noise_level(timestep: Any, sample: Tensor, steps: int = 1000) -> Tensor | None:
    """Return noise levels (batch,) in [0, 1] from one timestep or one a sample, in [0, steps].

    Args:
        timestep: one time, one a sample, or None, for which None is returned.
        sample: the latents, for their batch and device.
        steps: the time that is pure noise.
    """
    if timestep is None:
        return None
    timestep = torch.as_tensor(timestep, device=sample.device).flatten().float()
    return (timestep / steps).expand(sample.shape[0])


def latents(model: Model, side: int | None, batch: int, patch: int = 1) -> Tensor:
    """Return latents of zeros, (batch, channels, side, side)."""
    side = model.config.sample_size if side is None else side
    if side < patch or side % patch:
        raise ValueError(
            f"latents of side {side} cannot be cut into patches of {patch}; choose a multiple"
        )
    return next(model.parameters()).new_zeros(batch, model.config.in_channels, side, side)


def timesteps(noise: float, batch: int, device: torch.device, steps: int = 1000) -> Tensor:
    """Return the whole timestep nearest to a noise level, (batch,)."""
    return torch.full((batch,), min(steps - 1, round(noise * steps)), device=device)
