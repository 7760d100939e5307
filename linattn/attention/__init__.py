"""Name -> operator. A new operator is one file here and one line below."""

from typing import Any

from linattn.attention.base import POLICIES, LayerShape, Operator
from linattn.attention.clear import Clear
from linattn.attention.linfusion import LinFusion
from linattn.attention.lit import LiT
from linattn.attention.mediator import Mediator
from linattn.attention.options import nearest
from linattn.attention.softmax import Softmax

OPERATORS: dict[str, type[Operator]] = {
    kind.name: kind for kind in (Softmax, Clear, LinFusion, Mediator, LiT)
}


def create(name: str, shape: LayerShape, **options: Any) -> Operator:
    if name not in OPERATORS:
        raise nearest("operator", name, OPERATORS)
    return OPERATORS[name](shape, **options)


__all__ = ["OPERATORS", "POLICIES", "LayerShape", "Operator", "create"]
