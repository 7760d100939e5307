"""Record how a model was converted, as an attribute of that model.

A deepcopy of the model is therefore an independent student. The copies share the CPU copies of the
original weights, because nothing ever writes them.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from linattn import families
from linattn.surgery import identity, quantised, refusals

ATTRIBUTE = "_linattn"


@dataclass
class Conversion:
    base: dict[str, Any]  # as identity.base describes it
    digests: dict[str, identity.Digests]  # of every tensor of the base
    originals: dict[str, Tensor] = field(default_factory=dict)  # CPU copies of what was overwritten
    processors: dict[str, Any] = field(default_factory=dict)  # by layer
    initialise: dict[str, str] = field(default_factory=dict)  # by layer
    unrestorable: set[str] = field(default_factory=set)  # layers whose original was not kept

    @classmethod
    def of(cls, model: nn.Module) -> "Conversion":
        """Return the record of a model in which nothing is replaced yet."""
        digests = identity.all_digests(identity.tensors(model))
        return cls(identity.base(model, digests), digests)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Conversion":
        values = {name: copy.copy(value) for name, value in vars(self).items()}
        values["processors"] = copy.deepcopy(self.processors, memo)
        return Conversion(**values)

    def inside(self, name: str) -> bool:
        """Say whether a tensor belongs to a replaced layer."""
        return name.startswith(tuple(f"{layer}." for layer in self.processors))

    def refuse_quantised(self, model: nn.Module) -> None:
        """Raise if weights of the model were quantised since it was recorded."""
        live = identity.tensors(model)
        quantised.refuse_since(
            {name: live[name] for name in live if name in self.digests}, self.digests
        )

    def changed_outside(self, model: nn.Module) -> list[str]:
        """Name the tensors outside the replaced layers that differ from the base's."""
        outside = {
            name: tensor
            for name, tensor in identity.tensors(model).items()
            if name in self.digests and not self.inside(name)
        }
        return identity.changed(outside, self.digests)


def conversion_of(model: nn.Module) -> Conversion | None:
    return getattr(model, ATTRIBUTE, None)


def require_conversion(model: nn.Module) -> Conversion:
    conversion = conversion_of(model)
    if conversion is None:
        raise ValueError(
            f"this {type(model).__name__} is not linearised: call linattn.linearize(model, name) "
            "first"
        )
    return conversion


def attach(model: nn.Module, conversion: Conversion) -> None:
    """Make the model a student: it holds the record, watches its calls, and saves by linattn."""
    vars(model)[ATTRIBUTE] = conversion
    refusals.refuse(model)
    families.watch(model)


def detach(model: nn.Module) -> None:
    """Make the model none of ours, also where `attach` was interrupted half way."""
    families.unwatch(model)
    vars(model).pop(ATTRIBUTE, None)
    refusals.allow(model)
