"""What a converted layer keeps of its teacher's weights, and how the others start.

- A policy names the projections that stay (`keeps`); the others are drawn afresh (Xavier, as in
  LiT).
- A policy with `fit` starts from data: it is called once a layer with the `Activations` of the
  layer that is replaced, captured in the teacher, and may write any weight of the layer and its
  operator.
- `register_policy("name", Policy(...))` adds one; `initialise: name` then works in `linearize`, in
  `DistillConfig` and in params.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from linattn.attention import heads, regression
from linattn.attention.activations import Activations
from linattn.names import known

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


Fit = Callable[[Any, nn.Module, Activations], None]  # (operator, attn, activations)


@dataclass(frozen=True)
class Policy:
    """Say which projections of the teacher stay, and how a layer starts from data."""

    keeps: tuple[str, ...]  # projections that keep the teacher's weights, of PROJECTIONS
    fit: Fit | None = None  # None: no data

    def __post_init__(self) -> None:
        for name in self.keeps:
            known(name, PROJECTIONS, "projection that a policy keeps:")


POLICIES: dict[str, Policy] = {
    "mlp_only": Policy(()),
    "out": Policy(("to_out",)),
    "v": Policy(("to_v", "to_out")),
    "all": Policy(PROJECTIONS),
    "heads_alike": Policy(PROJECTIONS, heads.alike),
    "heads_important": Policy(PROJECTIONS, heads.important),
    "least_squares": Policy(PROJECTIONS, regression.least_squares),
}


def register_policy(name: str, policy: Policy) -> Policy:
    """Add a policy under a name that `initialise` takes.

    Args:
        name: the policy's name, which no other policy has.
        policy: which projections stay, and how the operator starts from data.
    """
    if name in POLICIES and POLICIES[name] != policy:
        raise ValueError(f"there is an initialise policy {name!r} already; choose another name")
    POLICIES[name] = policy
    return policy


def draw_afresh(attn: nn.Module, keeps: tuple[str, ...]) -> None:
    """Draw the projections of a layer that are not kept: Xavier weights and zero biases."""
    for name in PROJECTIONS:
        projection: Any = getattr(attn, name, None)
        if projection is None or name in keeps:
            continue
        # to_out is [Linear, Dropout]
        linear = projection if hasattr(projection, "weight") else projection[0]
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
