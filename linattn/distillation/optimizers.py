"""Create the optimizers of a training and take their steps.

- `muon` trains the 2-D weights inside the blocks with Muon and all others with AdamW, as the
  teachers' training does; `adamw` trains all with AdamW.
- Both get the same learning rate. Muon's matrices tolerate larger updates, so theirs is multiplied.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

MUON_LR_MULTIPLIER = 4.0  # see docs/LOG.md, 2026-11-20
Named = list[tuple[str, nn.Parameter]]


def muon(parameters: Named, muon_matrices: set[str], weight_decay: float) -> dict[str, Optimizer]:
    """Create Muon for the named matrices, and AdamW for the other parameters."""
    matrices = [parameter for name, parameter in parameters if name in muon_matrices]
    others = [(name, parameter) for name, parameter in parameters if name not in muon_matrices]
    created: dict[str, Optimizer] = {}
    if matrices:
        # adjust_lr_fn makes updates as large as AdamW's, so that one learning rate fits both.
        created["muon"] = torch.optim.Muon(
            matrices, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return {**created, **adamw(others, muon_matrices, weight_decay)}


def adamw(parameters: Named, muon_matrices: set[str], weight_decay: float) -> dict[str, Optimizer]:
    """Create AdamW for all parameters."""
    if not parameters:
        return {}
    values = [parameter for _, parameter in parameters]
    optimizer = torch.optim.AdamW(values, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    return {"adamw": optimizer}


OPTIMIZERS: dict[str, Callable[[Named, set[str], float], dict[str, Optimizer]]] = {
    "muon": muon,
    "adamw": adamw,
}


def take_step(optimizers: Mapping[str, Optimizer], learning_rate: float) -> None:
    """Step all optimizers at the learning rate, and clear their gradients."""
    for name, optimizer in optimizers.items():
        multiplier = MUON_LR_MULTIPLIER if name == "muon" else 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * multiplier
        optimizer.step()
        optimizer.zero_grad()
