"""Build a student as a copy of the teacher's model: one that is untrained, or one of a folder.

- Distillation, the report's row without distillation, the maps of anatomy and the explorer all
  start from `converted`, so that one student and one seed give one model everywhere.
- A copy holds the memory of the model it was made from wherever it may: of FLUX's 12 billion
  weights, 2.5 lie in self-attentions. What one of the two learns there, the other would learn too,
  so whatever is to be trained or overwritten must be the copy's own.
"""

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from linattn import families
from linattn.surgery.card import WEIGHTS
from linattn.surgery.convert import linearize
from linattn.surgery.folder import load


def converted(
    model: nn.Module,
    student: Any,
    seed: int,
    data: Callable[[nn.Module], Any] | None = None,
    *,
    shares: bool = True,
    keep_original: bool = True,
) -> nn.Module:
    """Return a converted copy of `model`, in eval mode and without gradients.

    Fresh weights depend on the seed alone. `student` is an entry of params.yaml or a DistillConfig:
    it names the operator, layers, initialise policy and options. `data` and `keep_original` are
    those of `linearize`. With `shares`, the copy and the model have one memory for all that lies
    outside the self-attentions; without it, which training every weight needs, they have two.
    """
    with torch.random.fork_rng(devices=[]):  # operators are drawn on the CPU, wherever the model is
        torch.manual_seed(seed)
        copied = linearize(
            sharing_copy(model) if shares else copy.deepcopy(model),
            student.operator,
            layers=student.layers,
            initialise=student.initialise,
            keep_original=keep_original,
            data=data,
            **student.options,
        )
    return copied.eval().requires_grad_(False)


def loaded(model: nn.Module, folder: str | Path) -> nn.Module:
    """Return a copy of the base `model` as the student that `save` wrote into `folder`.

    It is in eval mode, shares every tensor that the folder does not hold, and cannot be restored.
    """
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
        names = set(file.keys())
    return load(sharing_copy(model, names), folder, keep_original=False).eval()


def sharing_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """Copy a model, and let the copy share the memory of all tensors that stay as they are.

    Its self-attentions are its own, all of them, because a further `linearize` may write into any;
    so are the tensors that `own` names. A shared parameter is another object, so that `train`,
    `requires_grad_` and `to` of the copy leave the model alone.
    """
    inside = tuple(f"{layer.name}." for layer in families.layers(model))
    state = [*model.named_parameters(), *model.named_buffers()]
    memo = {
        id(tensor): _view(tensor)
        for name, tensor in state
        if name not in own and not name.startswith(inside)
    }
    return copy.deepcopy(model, memo)


def _view(tensor: Tensor) -> Tensor:
    """Return another parameter over the same memory.

    A class of somebody else's, such as a quantised weight, is shared as it is.
    """
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return tensor
