"""Run the training loop that every stage of every student shares.

- A stage is a function that adds the gradients of a step, by its number, and returns its loss
  terms. Its randomness comes from (seed, step) alone, so a run that is killed at any step ends with
  the weights of an undisturbed run.
- Several processes take slices of the same batch. Their gradients are averaged here rather than by
  a wrapper around the model, because the layerwise stage never runs the model as a whole. Only the
  main process writes.
- A loss or gradient that is not finite stops the run before weights or checkpoint change, and
  weights that are not finite after an update stop it before the next checkpoint.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from linattn.checkpoint import Resumable
from linattn.distillation import depth, schedules
from linattn.distillation.depth import Role
from linattn.distillation.history import History
from linattn.distillation.objectives import HALVES
from linattn.distillation.optimizers import OPTIMIZERS, Named, take_step
from linattn.distillation.settings import Settings
from linattn.finite import NotFinite

Terms = dict[str, Tensor]  # named scalars; `loss` is the one that is minimised


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    learning_rate: float
    learn: Callable[[int], Terms]  # adds the gradients of a step and returns its terms
    line: int = 0  # of its first steps, begin with weights that are linear in depth
    roles: Sequence[Role] = ()  # which weights those are
    parts: Mapping[str, Any] = field(default_factory=dict)  # what else its checkpoints hold


class Trained:
    """Hold the parameters that learn and their moving average, which becomes their final value.

    A bfloat16 weight that learns is a copy of a float32 master: eight bits of mantissa lose every
    update below a 256th of the weight. Masters get the gradients, the optimizer's steps and the
    average. Where a parameter is float32, it is its own master.
    """

    def __init__(self, parameters: Named):
        self.names = [name for name, _ in parameters]
        self.masters = [_master(parameter) for _, parameter in parameters]
        self.parameters: list[Tensor] = list(self.masters)
        pairs = zip(parameters, self.masters, strict=True)
        self.copies = [(copy, master) for (_, copy), master in pairs if copy is not master]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @property
    def named(self) -> Named:
        """Return the masters by name, for the optimizers."""
        return list(zip(self.names, self.masters, strict=True))

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Add every gradient of a copy to its master's in float32, and drop the copy's at once."""
        handles = []
        for copy, master in self.copies:
            receive = functools.partial(_receive, master=master)
            handles.append(copy.register_post_accumulate_grad_hook(receive))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def update_copies(self) -> None:
        """Round the masters into the weights that the model computes with."""
        for copy, master in self.copies:
            copy.copy_(master)

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        # The decay is smaller in the first steps; otherwise these would still weigh in the average
        # after 100 steps.
        weight = 1 - min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, self.parameters, weight)

    @torch.no_grad()
    def use_average(self) -> None:
        torch._foreach_copy_(self.parameters, self.average)
        self.update_copies()

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
        self.update_copies()


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """Return the parameter, or a float32 copy of one in half precision."""
    wide = parameter.detach().float() if parameter.dtype in HALVES else parameter.detach()
    return parameter if wide.dtype == parameter.dtype else nn.Parameter(wide)


@torch.no_grad()
def _receive(copy: Tensor, master: Tensor) -> None:
    gradient = copy.grad
    if gradient is None:
        return
    master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
    copy.grad = None


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
    optimizers = create(trained.named, muon_matrices, settings.weight_decay)
    history.begin(stage.name, stage.steps, settings.batch)
    loop = Resumable(
        Path(scratch) / f"{stage.name}.safetensors",
        {"trained": trained, "history": history, **optimizers, **stage.parts},
        stage.steps,
        recipe,
        every=settings.checkpoint_every,
        writes=accelerator.is_main_process,
    )
    with history.running(loop.start), trained.receiving():
        for step in loop:
            if step < stage.line:
                depth.hold(dict(trained.named), stage.roles)
                trained.update_copies()
            learning_rate = rate(step, stage.steps, stage.learning_rate, settings)
            values = averaged(stage.learn(step), accelerator)
            values["gradient"] = average_gradients(trained.parameters, settings.clip, accelerator)
            check_finite(values, stage, step, learning_rate, loop)
            take_step(optimizers, learning_rate)
            trained.update_copies()
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
    losses = ", ".join(f"{name} is {value}" for name, value in not_finite.items())
    raise NotFinite(
        f"step {step + 1} of {stage.steps} of stage {stage.name}: {losses} at learning rate "
        f"{learning_rate:.2g}; lower it, warm up longer, or train in float32. {loop.last}"
    )
