"""Run the training loop that every stage of every student shares: optimizers, learning rate,
average and history.

- A stage is a function from a step's number to its loss terms. Its randomness comes from (seed,
  step) alone, so a run that is killed at any step ends with the weights of an undisturbed run.
- Several processes take slices of the same batch. Their gradients are averaged here rather than by
  a wrapper around the model, because the layerwise stage never runs the model as a whole. Only the
  main process writes.
- Muon trains the hidden matrices and AdamW the other parameters, as in the teachers' training, or
  AdamW trains all.
- A loss or gradient that is not finite stops the run before weights or checkpoint change.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from linattn import project
from linattn.checkpoint import Resumable

MUON_LR_MULTIPLIER = 4.0  # see docs/LOG.md, 2026-11-20
Terms = dict[str, Tensor]  # named scalars; `loss` is the one that is minimised
Named = list[tuple[str, nn.Parameter]]


class NotFinite(ArithmeticError):
    """Report a loss or gradient norm that is infinite or not a number."""


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    learning_rate: float
    terms: Callable[[int], Terms]


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a step, which are the same in every stage."""

    batch: int = 16
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 10
    weight_decay: float = 0.0
    ema: float = 0.9
    clip: float | None = 1.0
    log_every: int = 20
    checkpoint_every: int = 50


class Trained:
    """Hold the parameters that learn and their moving average, which becomes their final value."""

    def __init__(self, parameters: Named):
        self.names = [name for name, _ in parameters]
        self.parameters = [parameter for _, parameter in parameters]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        # The decay is smaller in the first steps; otherwise these would still weigh in the average
        # after 100 steps.
        torch._foreach_lerp_(
            self.average, self.parameters, 1 - min(decay, (1 + step) / (10 + step))
        )

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


def optimizers(
    parameters: Named, muon_matrices: set[str], settings: Settings
) -> dict[str, torch.optim.Optimizer]:
    """Create the optimizers by name: Muon for the named matrices inside the blocks, AdamW for the
    others or for all.
    """
    if settings.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer is {settings.optimizer!r}; choose 'muon' or 'adamw'")
    muon = [p for name, p in parameters if settings.optimizer == "muon" and name in muon_matrices]
    muon_ids = {id(parameter) for parameter in muon}
    adamw = [p for _, p in parameters if id(p) not in muon_ids]
    decay = settings.weight_decay
    created: dict[str, torch.optim.Optimizer] = {}
    if muon:
        # adjust_lr_fn makes updates as large as AdamW's. These matrices tolerate larger updates
        # (MUON_LR_MULTIPLIER), so that one learning rate fits both optimizers.
        created["muon"] = torch.optim.Muon(
            muon, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    if adamw:
        created["adamw"] = torch.optim.AdamW(
            adamw, betas=(0.9, 0.99), weight_decay=decay, fused=True
        )
    return created


def rate(step: int, steps: int, peak: float, settings: Settings) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to 0, or the
    constant peak.
    """
    warmup = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "constant":
        return peak * warmup
    return peak * warmup * (1 + math.cos(math.pi * step / steps)) / 2


class History:
    """Collect a row of means every `every` steps; the main process prints it, or shows a bar in a
    notebook.
    """

    def __init__(self, every: int, shown: bool = True):
        self.every, self.shown = every, shown
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, summed over all runs if some were killed
        self.samples = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "samples": self.samples,
            "sums": self.sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def begin(self, stage: Stage, batch: int) -> None:
        self.stage, self.batch, self.sums = stage, batch, {}
        self.bar = None

    @contextlib.contextmanager
    def running(self, start: int) -> Iterator[None]:
        """Measure the time of the steps from step `start` on, and show the bar meanwhile."""
        self.clock = time.monotonic()
        if self.shown and in_notebook():
            self.bar = tqdm(
                total=self.stage.steps, initial=start, desc=self.stage.name, unit="step"
            )
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.samples += self.batch
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["steps"] = self.sums.get("steps", 0) + 1
        if self.bar is not None:
            self.bar.update()
        if (step + 1) % self.every == 0 or step + 1 == self.stage.steps:
            self._row(step + 1)

    def _row(self, step: int) -> None:
        count = self.sums.pop("steps")
        means = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        self.rows.append(
            {"stage": self.stage.name, "step": step, "seconds": round(self.seconds, 3), **means}
        )
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        elif self.shown:
            speed = self.samples / max(self.seconds, 1e-9)
            remaining = (self.stage.steps - step) * self.batch / speed
            losses = " ".join(f"{name} {value:.4g}" for name, value in means.items())
            progress = f"{self.stage.name} {step}/{self.stage.steps}"
            print(
                f"{progress} {losses} | {speed:.1f} samples/s, {remaining:.0f} s left", flush=True
            )


def in_notebook() -> bool:
    """Say whether this is a notebook that somebody watches.

    A pipeline's kernel is not one: its output goes to a log, where progress bars are noise.
    """
    return "ipykernel" in sys.modules and not project.in_pipeline()


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
    by_name = optimizers(parameters, muon_matrices, settings)
    history.begin(stage, settings.batch)
    loop = Resumable(
        Path(scratch) / f"{stage.name}.safetensors",
        {"trained": trained, "history": history, **by_name},
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
            take_step(by_name, learning_rate)
            trained.update_average(step, settings.ema)
            history.add(step, values | {"learning_rate": learning_rate})
    trained.use_average()


def take_step(by_name: Mapping[str, torch.optim.Optimizer], learning_rate: float) -> None:
    """Step all optimizers at the learning rate, and clear their gradients."""
    for name, optimizer in by_name.items():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (MUON_LR_MULTIPLIER if name == "muon" else 1.0)
        optimizer.step()
        optimizer.zero_grad()


def averaged(terms: Terms, accelerator: Accelerator) -> dict[str, float]:
    """Average the terms over the processes and return plain numbers.

    The terms are stacked, so that a step costs one message and one synchronisation with the device.
    """
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, "mean").tolist(), strict=True))


@torch.no_grad()
def average_gradients(
    parameters: Sequence[nn.Parameter], clip: float | None, accelerator: Accelerator
) -> float:
    """Average the gradients over the processes, clip them, and return their norm before clipping."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes > 1:
        for gradient in gradients:
            gradient.copy_(accelerator.reduce(gradient, "mean"))
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(
            [p for p in parameters if p.grad is not None], clip, norm
        )
    return norm.item()


def check_finite(
    values: Mapping[str, float], stage: Stage, step: int, learning_rate: float, loop: Resumable
) -> None:
    """Raise NotFinite if a loss or the gradient norm of this step is not finite."""
    not_finite = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not not_finite:
        return
    checkpoint = (
        f"{loop.path} holds step {loop.saved}" if loop.saved else "no checkpoint was written yet"
    )
    losses = ", ".join(f"{name} is {value}" for name, value in not_finite.items())
    raise NotFinite(
        f"step {step + 1} of {stage.steps} of stage {stage.name}: {losses} at learning rate "
        f"{learning_rate:.2g}; "
        f"lower it, warm up longer, or train in float32. Nothing was changed: {checkpoint}"
    )
