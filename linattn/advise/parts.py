"""The parts of a model, each run alone with random weights, and without its attention cores.

A part is a direct child of the model or an entry of its lists: a block, an embedding, an output
layer. Only one is in memory at a time, so a model larger than the device can be timed.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from linattn.attention import Operator
from linattn.attention.base import Position
from linattn.attention.grid import Grid
from linattn.attention.options import Values
from linattn.families import Context

DICE = 2**20  # random numbers that are drawn once and repeated: a thousand million take minutes


class Passing(Operator):
    """Stand for an attention core that costs nothing: every token keeps its own value."""

    name = "passing"

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: Grid,
        x: Tensor | None = None,
        noise: Tensor | None = None,
        position: Position | None = None,
    ) -> Tensor:
        return v

    def cost(self, grid: Grid, values: Values) -> int:
        return 0


@dataclass(frozen=True)
class Part:
    """Hold one call of a part of the model, on the meta device."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def signature(self) -> tuple[Any, ...]:
        """Return what tells calls apart that cost differently."""
        weights = tuple((name, tensor.shape) for name, tensor in self.module.named_parameters())
        leaves = tree_leaves((self.args, self.kwargs))
        tensors = tuple((leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))
        return type(self.module), weights, tensors


def children(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a model that have weights."""
    for child in model.children():
        for module in child if isinstance(child, nn.ModuleList) else (child,):
            if next(module.parameters(), None) is not None:
                yield module


@contextmanager
def recording(model: nn.Module) -> Generator[list[Part], None, None]:
    """Return a list that a forward fills with the calls of the model's parts."""
    calls: list[Part] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(Part(module, args, kwargs))

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True) for module in children(model)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Dice:
    """Draw tensors by seed, fast: one draw is repeated as often as a tensor needs."""

    def __init__(self, device: str | torch.device, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.device, self.drawn = device, torch.randn(DICE, generator=generator)

    def fill(self, tensor: Tensor, scale: float = 1.0) -> Tensor:
        """Fill a tensor in place, and return it."""
        values = (self.drawn * scale).to(tensor.device, tensor.dtype)
        for piece in tensor.view(-1).split(DICE):
            piece.copy_(values[: len(piece)])
        return tensor

    def like(self, leaf: Any) -> Any:
        """Return a tensor on the device for one on meta; whole numbers are 0.

        What is no tensor is returned as it is.
        """
        if isinstance(leaf, Context):
            noise = None if leaf.noise is None else self.like(leaf.noise)
            return Context.of(leaf.grid, noise, torch.empty(0, device=self.device))
        if not isinstance(leaf, Tensor):
            return leaf
        if not (leaf.is_floating_point() or leaf.is_complex()):
            return torch.zeros(leaf.shape, dtype=leaf.dtype, device=self.device)
        empty = torch.empty(leaf.shape, dtype=leaf.dtype, device=self.device)
        self.fill(torch.view_as_real(empty) if leaf.is_complex() else empty)
        return empty

    def weights(self, module: nn.Module) -> None:
        """Give a module on meta random weights on the device that keep its outputs finite."""
        module.to_empty(device=self.device)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                self.fill(tensor.detach(), max(fan_in, 1) ** -0.5)
            else:
                tensor.zero_()


@contextmanager
def running(part: Part, dice: Dice, backward: bool) -> Generator[Callable[[], Any], None, None]:
    """Return a call that runs a part on the device; its weights leave the device afterwards."""
    dice.weights(part.module)
    try:
        args, kwargs = tree_map(dice.like, (part.args, part.kwargs))
        if backward:
            yield _both(part.module, args, kwargs)
        else:
            yield torch.no_grad()(lambda: part.module(*args, **kwargs))
    finally:
        part.module.to("meta")


def _both(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Return a call of forward and backward, down to the inputs and every weight."""
    inputs = floating((args, kwargs))
    leaves = [tensor.requires_grad_() for tensor in inputs] + list(module.parameters())

    def call() -> Any:
        outputs = [tensor for tensor in floating(module(*args, **kwargs)) if tensor.requires_grad]
        ones = [torch.ones_like(tensor) for tensor in outputs]
        return torch.autograd.grad(outputs, leaves, ones, allow_unused=True)

    return call


def floating(tree: Any) -> list[Tensor]:
    """Return the floating-point tensors of nested tuples, lists and dictionaries."""
    leaves = tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
