"""Operators in every form that they name, and the inputs that the tests of linattn/attention share."""

import torch
from torch import nn

from linattn.attention import OPERATORS, LayerShape, Operator
from linattn.testing.form import GRIDS, SHAPE, forms, relative as error, rotation, shaken, tensors

FORMS = {str(form): form for operator in OPERATORS.values() for form in forms(operator)}


def form(name: str, shape: LayerShape = SHAPE, **options) -> Operator:
    return FORMS[name].build(shape, **options)


class Mix(nn.Module):
    """An operator's `mix` as a module's forward, which torch.compile and functional_call take."""

    def __init__(self, operator: Operator, position=None):
        super().__init__()
        self.operator, self.position = operator, position

    def forward(self, *arguments) -> torch.Tensor:
        return self.operator.mix(*arguments, position=self.position)


__all__ = ["FORMS", "GRIDS", "SHAPE", "Mix", "error", "form", "rotation", "shaken", "tensors"]
