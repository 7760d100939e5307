"""Change a model wholly or not at all.

What a change is about to overwrite is copied first; an error or Ctrl-C at any moment of the change
brings the model back to what it was, base or student.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families
from linattn.attention import Operator
from linattn.families import KEY, Layer
from linattn.signals import undisturbed
from linattn.surgery.record import attach, conversion_of, detach


class Before:
    """Remember what a model is before it is changed.

    Operators and processors are remembered as they are, because a change puts others in their
    place; the values of tensors that it overwrites are copied by `keep`.
    """

    def __init__(self, model: nn.Module):
        self.model, self.conversion = model, conversion_of(model)
        self.layers = [
            (layer, layer.operator, attention_of(layer).processor)
            for layer in families.layers(model)
        ]
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}

    def keep(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep tensors that are about to be written, and return CPU copies of what they hold now.

        Of a tensor that is written twice, what it held first is kept.
        """
        copies = {name: _cpu_copy(tensor.detach()) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self.tensors.setdefault(name, tensor)
            self.values.setdefault(name, copies[name])
        return copies

    def reinstate(self) -> None:
        """Bring the model back to what it was."""
        copy_into(self.tensors, self.values)
        for layer, operator, processor in self.layers:
            replace(layer, operator, processor)
        if self.conversion is None:
            detach(self.model)
        else:
            attach(self.model, self.conversion)


def wholly(model: nn.Module, change: Callable[[Before], None]) -> None:
    """Run a change of the model, and undo all of it if it does not come to its end.

    A further Ctrl-C during the undoing is ignored.
    """
    before = Before(model)
    try:
        change(before)
    except BaseException:
        with undisturbed():
            before.reinstate()
        raise


def replace(layer: Layer, operator: Operator | None, processor: Any) -> None:
    """Give a layer a processor, and an operator or none."""
    attn = attention_of(layer)
    attn.set_processor(processor)
    if operator is not None:
        setattr(attn, KEY, operator)
    elif layer.operator is not None:
        delattr(attn, KEY)


def attention_of(layer: Layer) -> Any:
    """Return the layer's attention; diffusers has two classes of it, which share no base."""
    return layer.attn


@torch.no_grad()
def copy_into(live: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy the values into the live tensors of the same name."""
    for name, value in values.items():
        if name in live:
            live[name].copy_(value)


def _cpu_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; one on meta stays on meta."""
    return tensor.clone() if tensor.is_meta else tensor.to("cpu", copy=True)
