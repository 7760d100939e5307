"""Count multiply-accumulates and parameters.

MACs are counted twice: by formula, as the papers do, and by torch's flop counter, which sees what a
fast path really multiplies, tiles and masked entries included. Neither count holds softmax, norms,
activations or other element-wise work.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from linattn import attention, families
from linattn.attention.grid import Grid
from linattn.families import Layer
from linattn.sampling import evaluating
from linattn_kernels import flops, use_backend  # noqa: F401 (flops teaches torch's counter)


@torch.no_grad()
def macs(
    model: nn.Module,
    side: int | None = None,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Count the MACs of one picture by formula: attention cores, their projections, and the rest.

    The latents are side x side. `inputs` replaces the arguments of the forward, for example with a
    text of its real length.

    The core is the operator's `macs`, or 2 N^2 channels where the layer is dense. Linear layers,
    convolutions and cross-attention are counted by hooks during one forward, on the meta device
    too, so the count assumes nothing about the structure of a block.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    layers = families.layers(model)
    products = ProductCount(model, layers)
    handles = products.hooks()
    try:
        with evaluating(model):
            grids = families.grids(model, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    core = sum(_core_macs(layer, grid, noise) for layer, grid in zip(layers, grids, strict=True))
    return {
        "core": core,
        "projections": products.projections,
        "rest": products.rest,
        "total": core + products.projections + products.rest,
        "tokens": max(grid.tokens for grid in grids),
    }


class ProductCount:
    """Count the multiplications of a forward outside the self-attention cores, by hooks."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model, self.projections, self.rest = model, 0, 0
        self.attention_ids: set[int] = set()
        self.operator_ids: set[int] = set()
        for layer in layers:
            self.attention_ids.update(id(module) for module in layer.attn.modules())
            if layer.operator is not None:
                self.operator_ids.update(id(module) for module in layer.operator.modules())

    def hooks(self) -> list[Any]:
        """Register the hooks and return their handles."""
        handles: list[Any] = []
        for module in self.model.modules():
            is_product = isinstance(module, (nn.Linear, nn.Conv2d))
            if is_product and id(module) not in self.operator_ids:
                handles.append(module.register_forward_hook(self.count_product))
        for attn in families.attentions(self.model):
            if id(attn) not in self.attention_ids:
                count = self.count_cross_attention
                handles.append(attn.register_forward_hook(count, with_kwargs=True))
        return handles

    def count_product(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        count = output.numel() * _products_per_output(module)
        if id(module) in self.attention_ids:
            self.projections += count
        else:
            self.rest += count

    def count_cross_attention(
        self, attn: Any, args: tuple, kwargs: dict[str, Any], output: Tensor
    ) -> None:
        x, text = args[0] if args else kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        self.rest += 2 * x.shape[0] * x.shape[1] * text.shape[1] * attn.inner_dim


def _products_per_output(module: nn.Module) -> int:
    """Count the multiplications for one number of the output."""
    if isinstance(module, nn.Linear):
        return module.in_features
    convolution = cast(nn.Conv2d, module)
    return convolution.in_channels // convolution.groups * math.prod(convolution.kernel_size)


def _core_macs(layer: Any, grid: Grid, noise: float) -> int:
    """Count the MACs of one self-attention core by formula."""
    if layer.operator is None:
        return 2 * grid.tokens**2 * layer.shape.channels
    return layer.operator.macs(grid, noise)


@torch.no_grad()
def counted_macs(
    model: nn.Module,
    side: int | None = None,
    noise: float = 0.5,
    inputs: Mapping[str, Any] | None = None,
) -> int:
    """Count the MACs of the same forward by torch's flop counter.

    Fused attention would count as nothing, so PyTorch's unfused attention runs here. The operators
    run their PyTorch paths, whose tiles are the same on every machine.
    """
    model = families.model_of(model)
    inputs = inputs or example(model, side, noise=noise)
    with use_backend("torch"):
        return count_macs(lambda: model(**inputs), model)


def count_macs(call: Callable[[], Any], model: nn.Module | None = None) -> int:
    """Count the MACs of one call by torch's flop counter, with `model` in evaluation mode."""
    counter = FlopCounterMode(display=False)
    evaluated = nn.Identity() if model is None else model
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), evaluating(evaluated), counter:
        call()
    return counter.get_total_flops() // 2


def example(
    model: nn.Module, side: int | None = None, batch: int = 1, noise: float = 0.5
) -> dict[str, Any]:
    """Return a forward's arguments at one noise level, in the model's dtype on its device."""
    return families.family(model).example(model, side, batch, noise)


def parameters(model: nn.Module, trained: Iterable[str] | None = None) -> dict[str, int]:
    """Count the parameters: in total, added by the operators, and trained.

    The trained ones are those named in `trained`, or those that require a gradient where nothing is
    named.
    """
    model = families.model_of(model)
    named = dict(model.named_parameters())
    if trained is None:
        names = {name for name, parameter in named.items() if parameter.requires_grad}
    else:
        names = set(trained)
        if unknown := sorted(names - named.keys()):
            model_name = type(model).__name__
            raise ValueError(
                f"{unknown[0]!r} is no parameter of {model_name} ({len(unknown)} unknown names)"
            )
    operators = [layer.operator for layer in families.layers(model)]
    return {
        "total": sum(parameter.numel() for parameter in named.values()),
        "added": sum(_added_parameters(operator) for operator in operators if operator),
        "trained": sum(named[name].numel() for name in names),
    }


def _added_parameters(operator: attention.Operator) -> int:
    """Count the parameters that an operator adds to its layer."""
    named = dict(operator.named_parameters())
    return sum(named[name].numel() for name in operator.new_parameters())
