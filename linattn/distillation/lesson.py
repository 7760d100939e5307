"""What one step shows teacher and student, and what it asks: the losses of both stages.

- A step's pictures, times, noise, drops and scheduled options come from (seed, step) and are drawn for the whole batch
  before processes take their slices: two processes of 16 do what one of 32 does.
- All students of one seed see the same pictures, times and noise at the same step, so that operators compare.
- Conditions are dropped once, the same for teacher and student; both are in eval mode, so DiT's blocks drop none.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from linattn import conditions, families
from linattn.checkpoint import generator
from linattn.conditions import Asked, Conditions, Rows
from linattn.diffusion import Process
from linattn.distillation import objectives
from linattn.distillation.config import DTYPES, Data, DistillConfig
from linattn.distillation.objectives import Comparison
from linattn.distillation.training import Terms


@dataclass(frozen=True)
class Batch:
    clean: Tensor  # (batch, channels, height, width)
    asked: Asked
    dropped: Tensor  # (batch,), whether what is asked for is kept from the models
    eps: Tensor
    t: Tensor
    choice: float  # in [0, 1): which entry of a schedule this step trains
    rows: Rows = field(default_factory=dict)  # what the models are told


def draw(config: DistillConfig, diffusion: Process, samples: Data, step: int) -> Batch:
    """The whole batch of one step, whoever computes it."""
    dice = generator(config.seed, step)
    rows = torch.randint(len(samples), (config.batch,), generator=dice)
    if config.times == "teacher":
        t = diffusion.draw_times(config.batch, dice)
    else:
        t = diffusion.uniform_times(config.batch, dice)
    dropped = torch.rand(config.batch, generator=dice) < config.label_drop
    clean, asked = samples.batch(rows)
    eps = torch.randn(clean.shape, generator=dice)
    choice = torch.rand((), generator=dice).item()
    return Batch(clean.float(), asked, dropped, eps, t, choice)


@contextlib.contextmanager
def pinned(student: nn.Module, choice: float) -> Iterator[None]:
    """One entry of the schedule for the whole batch and all layers, so that every entry learns at every noise level."""
    with contextlib.ExitStack() as stack:
        for layer in families.layers(student):
            if layer.operator is not None and layer.operator.schedule:
                # Below the last `until` the operator's own options hold: one entry more.
                entries = layer.operator.choices + [{}] * (layer.operator.schedule[-1][0] > 0)
                stack.enter_context(layer.operator.pin(**entries[int(choice * len(entries))]))
        yield


@dataclass(frozen=True)
class Lesson:
    """Teacher, student and data; its two methods are the stages' losses."""

    config: DistillConfig
    teacher: nn.Module
    student: nn.Module
    diffusion: Process
    conditions: Conditions
    samples: Data
    accelerator: Accelerator

    def batch(self, step: int) -> Batch:
        """This process's slice of a step."""
        whole = draw(self.config, self.diffusion, self.samples, step)
        share = self.config.batch // self.accelerator.num_processes
        mine = slice(share * self.accelerator.process_index, share * (self.accelerator.process_index + 1))
        device = self.accelerator.device
        clean, dropped, eps, t = (each[mine].to(device) for each in (whole.clean, whole.dropped, whole.eps, whole.t))
        return Batch(clean, whole.asked[mine], dropped, eps, t, whole.choice, self.told(whole.asked[mine], dropped))

    @torch.no_grad()
    def told(self, asked: Asked, dropped: Tensor) -> Rows:
        rows = self.conditions.rows(asked)
        return conditions.dropped(rows, self.conditions.nothing(), dropped) if dropped.any() else rows

    def autocast(self) -> contextlib.AbstractContextManager:
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def run(self, model: nn.Module, noisy: Tensor, batch: Batch) -> Tensor:
        with self.autocast():
            return self.conditions.call(model, noisy, batch.t, batch.rows).float()

    def layerwise(self, step: int) -> Terms:
        """L1 of every replaced layer's output, each fed the teacher's input: no gradient between layers."""
        batch = self.batch(step)
        with torch.no_grad(), families.capture(self.teacher) as seen:
            self.run(self.teacher, self.diffusion.noised(batch.clean, batch.eps, batch.t), batch)
        replaced = [layer for layer in families.layers(self.student) if layer.operator is not None]
        told = [seen[layer.index] for layer in replaced]
        with self.autocast(), pinned(self.student, batch.choice):
            pairs = zip(replaced, told, strict=True)
            outputs = [
                families.apply(layer, at["input"], at["grid"], at["noise"], **at["more"]).float() for layer, at in pairs
            ]
        return {"loss": objectives.layerwise(outputs, [at["output"].float() for at in told], "l1").mean()}

    def end_to_end(self, step: int) -> Terms:
        step += self.config.layerwise_steps  # never a batch twice
        batch = self.batch(step)
        noisy = self.diffusion.noised(batch.clean, batch.eps, batch.t)
        with torch.no_grad(), self.captured(self.teacher) as theirs:
            wanted = self.run(self.teacher, noisy, batch)
        with self.captured(self.student) as ours, pinned(self.student, batch.choice):
            given = self.run(self.student, noisy, batch)
        features = [[layer["output"].float() for layer in layers] for layers in (ours, theirs)]
        return self.config.terms(Comparison(self.diffusion, batch.clean, batch.eps, batch.t, given, wanted, *features))

    def captured(self, model: nn.Module) -> contextlib.AbstractContextManager:
        return families.capture(model) if self.config.terms.features else contextlib.nullcontext([])
