"""Begin with weights that are linear in depth: W_l = A + (l / L) B, as TLEG starts its layers
(arXiv 2312.05614).

- Only what the operators added is held to the line, and only in the first fifth of all steps: the
  teacher's projections have a start of their own in every layer. Afterwards every layer is free.
- Before each of those steps the weights of one role are replaced by their least-squares line.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linattn import families, surgery

SHARE = 0.2  # of all steps


@dataclass(frozen=True)
class Role:
    """Name the weights that are one role in several layers, in order of depth."""

    names: tuple[str, ...]
    depths: tuple[float, ...]  # l / L of each, from 1 / L to 1


def roles(student: nn.Module) -> list[Role]:
    """Return the roles of the parameters that the operators added; a line needs three layers."""
    layers = {layer.name: layer for layer in families.layers(student)}
    groups: dict[tuple[str, torch.Size], dict[str, float]] = {}
    for name, parameter in surgery.new_parameters(student):
        layer, inner = re.split(rf"\.{families.KEY}\.", name, maxsplit=1)
        depth = (1 + layers[layer].index) / len(layers)
        groups.setdefault((inner, parameter.shape), {})[name] = depth
    listed = (Role(tuple(group), tuple(group.values())) for group in groups.values())
    return [role for role in listed if len(role.names) > 2]


def steps_of(start: str, total: int) -> int:
    """Return how many of so many steps begin on the line: none with a free start."""
    return round(SHARE * total) if start == "linear_in_depth" else 0


@torch.no_grad()
def hold(parameters: Mapping[str, Tensor], held: Iterable[Role]) -> None:
    """Replace the weights of every role that is trained by their line in depth."""
    for role in held:
        if all(name in parameters for name in role.names):
            line([parameters[name] for name in role.names], role.depths)


def line(weights: Sequence[Tensor], depths: Sequence[float]) -> None:
    """Write the least-squares line A + depth B of these weights into them."""
    stacked = torch.stack(list(weights)).flatten(1).double()  # (layers, numbers)
    depth = torch.tensor(depths, dtype=torch.float64, device=stacked.device)
    basis = torch.stack([torch.ones_like(depth), depth], 1)  # (layers, 2)
    fitted = basis @ torch.linalg.lstsq(basis, stacked).solution
    for weight, values in zip(weights, fitted, strict=True):
        weight.copy_(values.view_as(weight))
