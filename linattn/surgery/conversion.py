"""Build an untrained student: a converted copy of the teacher's model.

Distillation, the report's row without distillation, the maps of anatomy and the explorer all start
from this copy, so that one student and one seed give one model everywhere.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from linattn.surgery.convert import linearize


def converted(
    model: nn.Module,
    student: Any,
    seed: int,
    data: Callable[[nn.Module], Any] | None = None,
) -> nn.Module:
    """Return a converted copy of `model`, in eval mode and without gradients.

    Fresh weights depend on the seed alone. `student` is an entry of params.yaml or a DistillConfig:
    it names the operator, layers, initialise policy and options. `data` is that of `linearize`.
    """
    with torch.random.fork_rng(devices=[]):  # operators are drawn on the CPU, wherever the model is
        torch.manual_seed(seed)
        copied = linearize(
            copy.deepcopy(model),
            student.operator,
            layers=student.layers,
            initialise=student.initialise,
            data=data,
            **student.options,
        )
    return copied.eval().requires_grad_(False)
