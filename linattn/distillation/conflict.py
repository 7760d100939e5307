"""Stop distilling once it works against the task: HASTE's rule (arXiv 2505.16792).

Every so many steps the gradients of the distilling terms and of the task are compared on one batch,
over the parameters of the attentions. Three cosines below 0 in a row end the distilling terms; the
task goes on alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

READINGS = 3  # below 0 in a row: a single one is within the noise of a batch


class Conflict:
    """Remember the cosines, over a kill as well."""

    def __init__(self, every: int):
        self.every = every
        self.cosines: list[float] = []

    @property
    def ended(self) -> bool:
        """Say whether the distilling terms have come to their end."""
        last = self.cosines[-READINGS:]
        return len(last) == READINGS and max(last) < 0

    def due(self, step: int) -> bool:
        """Say whether the gradients are to be compared before this step."""
        return not self.ended and step % self.every == 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint must hold."""
        return {"cosines": self.cosines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.cosines = state["cosines"]


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a loss in float32, (numbers of all parameters,).

    Args:
        loss: a scalar; its graph is kept.
        parameters: what it is differentiated by; those that it does not reach have 0.
    """
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten().float() for part in gradients])
