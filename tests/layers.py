"""Operators in every form that they name, and the inputs that tests share."""

import torch
from torch import nn

from linattn.attention import OPERATORS, LayerShape, Operator
from linattn.testing.form import GRIDS, SHAPE, forms, relative as error, rotation, shaken, tensors

FORMS = {str(form): form for operator in OPERATORS.values() for form in forms(operator)}


# Forms that mean something where no text attends.
PLAIN = {
    name: form
    for name, form in FORMS.items()
    if not any(form.operator.table[option].needs for option in form.options)
}


def richest(operator: str) -> dict:
    """Return the options of an operator's form with the most parameters."""
    plain = [form for form in PLAIN.values() if form.operator.name == operator]

    def parameters(form) -> int:
        return sum(parameter.numel() for parameter in form.build().parameters())

    return dict(max(plain, key=parameters).options)


def form(name: str, shape: LayerShape = SHAPE, **options) -> Operator:
    return FORMS[name].build(shape, **options)


class Mix(nn.Module):
    """An operator's `mix` as a module's forward, which torch.compile and functional_call take."""

    def __init__(self, operator: Operator, position=None):
        super().__init__()
        self.operator, self.position = operator, position

    def forward(self, *arguments) -> torch.Tensor:
        return self.operator.mix(*arguments, position=self.position)


__all__ = [
    "FORMS",
    "GRIDS",
    "PLAIN",
    "SHAPE",
    "Mix",
    "error",
    "form",
    "richest",
    "rotation",
    "shaken",
    "tensors",
]
