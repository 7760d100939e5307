"""Run the training loop that every stage of every student shares.

- A stage is a function from a step's number to its loss terms. Its randomness comes from (seed,
  step) alone, so a run that is killed at any step ends with the weights of an undisturbed run.
- Several processes take slices of the same batch. Their gradients are averaged here rather than by
  a wrapper around the model, because the layerwise stage never runs the model as a whole. Only the
  main process writes.
- A loss or gradient that is not finite stops the run before weights or checkpoint change.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from linattn.checkpoint import Resumable
from linattn.distillation import schedules
from linattn.distillation.history import History
from linattn.distillation.optimizers import OPTIMIZERS, Named, take_step
from linattn.distillation.settings import Settings

Terms = dict[str, Tensor]  # named scalars; `loss` is the one that is minimised


class NotFinite(ArithmeticError):
    """Report a loss or gradient norm that is infinite or not a number."""


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    learning_rate: float
    terms: Callable[[int], Terms]


class Trained:
    """Hold the parameters that learn and their moving average, which becomes their final value."""

    def __init__(self, parameters: Named):
        self.names = [name for name, _ in parameters]
        self.parameters: list[Tensor] = [parameter for _, parameter in parameters]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        # The decay is smaller in the first steps; otherwise these would still weigh in the average
        # after 100 steps.
        weight = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, weight)

    @torch.no_grad()
    def use_average(self) -> None:
        torch._foreach_copy_(self.parameters, self.average)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {
            "values": dict(zip(self.names, self.parameters, strict=True)),
            "average": dict(zip(self.names, self.average, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for key, tensors in (("values", self.parameters), ("average", self.average)):
            for name, tensor in zip(self.names, tensors, strict=True):
                tensor.copy_(state[key][name])


def rate(step: int, steps: int, peak: float, settings: Settings) -> float:
    """Return the learning rate of a step."""
    return schedules.learning_rate(step, steps, peak, settings.schedule, settings.warmup)


def fit(
    stage: Stage,
    parameters: Named,
    muon_matrices: set[str],
    settings: Settings,
    history: History,
    scratch: Path,
    recipe: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """Take the steps of a stage, and leave the parameters at their moving average."""
    trained = Trained(parameters)
    create = OPTIMIZERS[settings.optimizer]
    optimizers = create(parameters, muon_matrices, settings.weight_decay)
    history.begin(stage.name, stage.steps, settings.batch)
    loop = Resumable(
        Path(scratch) / f"{stage.name}.safetensors",
        {"trained": trained, "history": history, **optimizers},
        stage.steps,
        recipe,
        every=settings.checkpoint_every,
        writes=accelerator.is_main_process,
    )
    with history.running(loop.start):
        for step in loop:
            learning_rate = rate(step, stage.steps, stage.learning_rate, settings)
            terms = stage.terms(step)
            terms["loss"].backward()
            values = averaged(terms, accelerator)
            values["gradient"] = average_gradients(trained.parameters, settings.clip, accelerator)
            check_finite(values, stage, step, learning_rate, loop)
            take_step(optimizers, learning_rate)
            trained.update_average(step, settings.ema)
            history.add(step, values | {"learning_rate": learning_rate})
    trained.use_average()


def averaged(terms: Terms, accelerator: Accelerator) -> dict[str, float]:
    """Average the terms over the processes and return plain numbers.

    The terms are stacked, so that a step costs one message and one synchronisation with the device.
    """
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    reduced = cast(Tensor, accelerator.reduce(stacked, "mean"))
    return dict(zip(terms, reduced.tolist(), strict=True))


@torch.no_grad()
def average_gradients(
    parameters: Sequence[Tensor], clip: float | None, accelerator: Accelerator
) -> float:
    """Average the gradients over the processes, clip them, and return their norm unclipped."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes > 1:
        for gradient in gradients:
            gradient.copy_(cast(Tensor, accelerator.reduce(gradient, "mean")))
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(learning, clip, norm)
    return norm.item()


def check_finite(
    values: Mapping[str, float], stage: Stage, step: int, learning_rate: float, loop: Resumable
) -> None:
    """Raise NotFinite if a loss or the gradient norm of this step is not finite."""
    not_finite = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not not_finite:
        return
    saved = f"{loop.path} holds step {loop.saved}"
    checkpoint = saved if loop.saved else "no checkpoint was written yet"
    losses = ", ".join(f"{name} is {value}" for name, value in not_finite.items())
    raise NotFinite(
        f"step {step + 1} of {stage.steps} of stage {stage.name}: {losses} at learning rate "
        f"{learning_rate:.2g}; lower it, warm up longer, or train in float32. Nothing was changed: "
        f"{checkpoint}"
    )
