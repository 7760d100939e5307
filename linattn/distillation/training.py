"""One training loop for every stage of every student: what is trained, how its step is taken, what is written down.

- A stage is a function from a step's number to its loss terms. Its randomness comes from (seed, step) alone, so a run
  killed anywhere ends with the weights of an undisturbed one.
- Several processes take slices of the same batch; their gradients are averaged here rather than by a wrapper around
  the model, because the layerwise stage never runs the model as a whole. Only the main process writes.
- Hidden matrices learn by Muon and the rest by AdamW, as in the teachers' training, or all by AdamW.
- A loss or gradient that is not finite stops the run before it can touch weights or checkpoint.
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
    pass


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    learning_rate: float
    terms: Callable[[int], Terms]


@dataclass(frozen=True)
class Settings:
    """How a step is taken, the same in every stage."""

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
    """The parameters that learn and their moving average, which is what is kept in the end."""

    def __init__(self, parameters: Named):
        self.names = [name for name, _ in parameters]
        self.parameters = [parameter for _, parameter in parameters]
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        # While young the average forgets faster, or the first steps would still be in it at the last of a hundred.
        torch._foreach_lerp_(self.average, self.parameters, 1 - min(decay, (1 + step) / (10 + step)))

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
        for kind, tensors in (("values", self.parameters), ("average", self.average)):
            for name, tensor in zip(self.names, tensors, strict=True):
                tensor.copy_(state[kind][name])


def optimizers(parameters: Named, hidden: set[str], settings: Settings) -> dict[str, torch.optim.Optimizer]:
    """`hidden` names the matrices inside the blocks, for Muon; AdamW has the others, or all."""
    if settings.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer is {settings.optimizer!r}; choose 'muon' or 'adamw'")
    muon = [p for name, p in parameters if settings.optimizer == "muon" and name in hidden]
    chosen = {id(parameter) for parameter in muon}
    rest = [p for _, p in parameters if id(p) not in chosen]
    decay = settings.weight_decay
    made: dict[str, torch.optim.Optimizer] = {}
    if muon:
        # adjust_lr_fn makes updates as large as AdamW's. These matrices bear more (MUON_LR_MULTIPLIER), so that both
        # kinds of parameters take one rate.
        made["muon"] = torch.optim.Muon(muon, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    if rest:
        made["adamw"] = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    return made


def rate(step: int, steps: int, peak: float, settings: Settings) -> float:
    """Linear warm-up, then half a cosine down to nothing, or the peak to the end."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "constant":
        return peak * warm
    return peak * warm * (1 + math.cos(math.pi * step / steps)) / 2


class History:
    """A row of means every `every` steps, printed by the main process, or shown as a bar in a notebook."""

    def __init__(self, every: int, shown: bool = True):
        self.every, self.shown = every, shown
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, over every run that was killed and went on
        self.samples = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds, "samples": self.samples, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def begin(self, stage: Stage, batch: int) -> None:
        self.stage, self.batch, self.sums = stage, batch, {}
        self.bar = None

    @contextlib.contextmanager
    def running(self, start: int) -> Iterator[None]:
        """The time in which steps are taken, from step `start` on."""
        self.clock = time.monotonic()
        if self.shown and in_notebook():
            self.bar = tqdm(total=self.stage.steps, initial=start, desc=self.stage.name, unit="step")
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
        self.rows.append({"stage": self.stage.name, "step": step, "seconds": round(self.seconds, 3), **means})
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
        elif self.shown:
            speed = self.samples / max(self.seconds, 1e-9)
            left = (self.stage.steps - step) * self.batch / speed
            words = " ".join(f"{name} {value:.4g}" for name, value in means.items())
            where = f"{self.stage.name} {step}/{self.stage.steps}"
            print(f"{where} {words} | {speed:.1f} samples/s, {left:.0f} s left", flush=True)


def in_notebook() -> bool:
    """A kernel that somebody watches: a pipeline's kernel keeps its output in a log, where bars are noise."""
    return "ipykernel" in sys.modules and not project.in_pipeline()


def fit(
    stage: Stage,
    parameters: Named,
    hidden: set[str],
    settings: Settings,
    history: History,
    scratch: Path,
    recipe: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """Take the stage's steps; the parameters end as their moving average."""
    trained = Trained(parameters)
    steppers = optimizers(parameters, hidden, settings)
    history.begin(stage, settings.batch)
    loop = Resumable(
        Path(scratch) / f"{stage.name}.safetensors",
        {"trained": trained, "history": history, **steppers},
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
            take(steppers, learning_rate)
            trained.update_average(step, settings.ema)
            history.add(step, values | {"learning_rate": learning_rate})
    trained.use_average()


def take(steppers: Mapping[str, torch.optim.Optimizer], learning_rate: float) -> None:
    for name, stepper in steppers.items():
        for group in stepper.param_groups:
            group["lr"] = learning_rate * (MUON_LR_MULTIPLIER if name == "muon" else 1.0)
        stepper.step()
        stepper.zero_grad()


def averaged(terms: Terms, accelerator: Accelerator) -> dict[str, float]:
    """Means over the processes, as plain numbers: one message and one wait for the device a step."""
    stacked = torch.stack([value.detach().float() for value in terms.values()])
    return dict(zip(terms, accelerator.reduce(stacked, "mean").tolist(), strict=True))


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], clip: float | None, accelerator: Accelerator) -> float:
    """Gradients averaged over the processes and clipped; their norm before that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if accelerator.num_processes > 1:
        for gradient in gradients:
            gradient.copy_(accelerator.reduce(gradient, "mean"))
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], clip, norm)
    return norm.item()


def check_finite(values: Mapping[str, float], stage: Stage, step: int, learning_rate: float, loop: Resumable) -> None:
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if not wrong:
        return
    kept = f"{loop.path} holds step {loop.saved}" if loop.saved else "no checkpoint was written yet"
    what = ", ".join(f"{name} is {value}" for name, value in wrong.items())
    raise NotFinite(
        f"step {step + 1} of {stage.steps} of stage {stage.name}: {what} at learning rate {learning_rate:.2g}; "
        f"lower it, warm up longer, or train in float32. Nothing was changed: {kept}"
    )
