"""A student before it learns: a copy of the teacher's model, converted.

Distillation, the report's row that is not distilled, the maps of anatomy and what the explorer shows begin here, so
that one student and one seed are one model everywhere.
"""

import copy
from typing import Any

import torch
from torch import nn

from linattn.surgery.convert import linearize


def converted(model: nn.Module, student: Any, seed: int) -> nn.Module:
    """In eval mode, and nothing of it learns yet; fresh weights depend on the seed alone.

    `student` says operator, layers, initialise and options: an entry of params.yaml, or a DistillConfig.
    """
    with torch.random.fork_rng(devices=[]):  # operators are drawn on the CPU, wherever the model is
        torch.manual_seed(seed)
        made = linearize(
            copy.deepcopy(model),
            student.operator,
            layers=student.layers,
            initialise=student.initialise,
            **student.options,
        )
    return made.eval().requires_grad_(False)
