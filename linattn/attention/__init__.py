"""The operators by name. A new one is one file here and one line below."""

from typing import Any

from linattn.attention.activations import Activations
from linattn.attention.base import LayerShape, Operator
from linattn.attention.policies import POLICIES, Policy, register_policy
from linattn.attention.registry import Registry
from linattn.names import nearest

OPERATORS = Registry(
    "softmax:Softmax",
    "clear:Clear",
    "linfusion:LinFusion",
    "mediator:Mediator",
    "lit:LiT",
    "pisa:Pisa",
    "edit:EDiT",
    "mhla:MHLA",
    "ridge:Ridge",
    "mixed:Mixed",
    "axial:Axial",
    "pyramid:Pyramid",
    "control:Control",
    "lolcats:Lolcats",
    "delta:Delta",
    "sla:Sla",
    "momentum:Momentum",
    "ttt:TTT",
)


def create(name: str, shape: LayerShape, /, **options: Any) -> Operator:
    """Build the operator of one layer.

    Args:
        name: one of `OPERATORS`.
        shape: the layer's width, heads and text.
        options: options of the operator; those left out have their defaults.
    """
    if name not in OPERATORS:
        raise ValueError(
            f"{unknown(name)}; one of another package joins by linattn.register(Operator)"
        )
    return OPERATORS[name](shape, **options)


def unknown(name: str, noun: str = "operator") -> ValueError:
    """Return the error for an unknown operator; "linear", say, names the linear ones.

    Args:
        name: the unknown name.
        noun: what it should be a name of.
    """
    meant = [
        valid for valid, operator in OPERATORS.items() if str(name).lower() in operator.aliases
    ]
    question = f"did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    return nearest(noun, name, OPERATORS, question=question)


def register(operator: type[Operator]) -> type[Operator]:
    """Add an operator of another package under its name; also a decorator of its class.

    Args:
        operator: a subclass of `Operator` with name, core, cost, and dense or `defined`.
    """
    return OPERATORS.add(operator)


__all__ = [
    "OPERATORS",
    "POLICIES",
    "Activations",
    "LayerShape",
    "Operator",
    "Policy",
    "create",
    "register",
    "register_policy",
    "unknown",
]
