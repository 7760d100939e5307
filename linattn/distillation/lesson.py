"""Compute the losses of one step: draw its batch, run teacher and student on it, compare them.

- A step's pictures, times, noise, dropped prompts and scheduled options come from (seed, step).
  They are drawn for the whole batch before processes take their slices, so two processes of 16
  compute what one of 32 computes.
- All students of one seed see the same pictures, times and noise at the same step, so that
  operators compare.
- Prompts are dropped here, and teacher and student get the same ones. Both models are in eval mode,
  so DiT's blocks drop none.
- Where texts have lengths of their own, the pictures of one length are a group: both models run on
  each group, and the terms are the mean over pictures, so that padding is never read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from linattn import conditions, families
from linattn.conditions import Conditioning, Conditions, Prompts
from linattn.diffusion import Process
from linattn.distillation import objectives
from linattn.distillation.config import Data, DistillConfig
from linattn.distillation.objectives import Comparison
from linattn.distillation.settings import DTYPES
from linattn.distillation.training import Terms
from linattn.seeds import of_step


@dataclass(frozen=True)
class Batch:
    """Hold the inputs of one step for both models."""

    clean: Tensor  # (batch, channels, height, width)
    prompts: Prompts
    dropped: Tensor  # (batch,), true where the models get the empty prompt instead
    eps: Tensor
    t: Tensor
    choice: float  # in [0, 1): which entry of a schedule this step trains
    conditioning: Conditioning = field(
        default_factory=dict
    )  # keyword arguments of the models' forward

    def taken(self, indices: Tensor) -> "Batch":
        """Take the pictures with these indices out of the batch."""
        tensors = {name: getattr(self, name)[indices] for name in ("clean", "dropped", "eps", "t")}
        return dataclasses.replace(
            self,
            **tensors,
            prompts=[self.prompts[index] for index in indices.tolist()],
            conditioning=conditions.taken(self.conditioning, indices),
        )


def draw(config: DistillConfig, diffusion: Process, samples: Data, step: int) -> Batch:
    """Draw the whole batch of one step, which is the same in every process."""
    rng = of_step(config.seed, step)
    indices = torch.randint(len(samples), (config.batch,), generator=rng)
    if config.times == "teacher":
        t = diffusion.draw_times(config.batch, rng)
    else:
        t = diffusion.uniform_times(config.batch, rng)
    dropped = torch.rand(config.batch, generator=rng) < config.label_drop
    clean, prompts = samples.batch(indices)
    eps = torch.randn(clean.shape, generator=rng)
    choice = torch.rand((), generator=rng).item()
    return Batch(clean.float(), prompts, dropped, eps, t, choice)


@contextlib.contextmanager
def pinned(student: nn.Module, choice: float) -> Iterator[None]:
    """Pin one entry of the schedule for the whole batch and all layers.

    Entries are drawn independently of the time, so that every entry learns at every noise level.
    """
    with contextlib.ExitStack() as stack:
        for layer in families.layers(student):
            if layer.operator is not None and layer.operator.schedule:
                entries = list(layer.operator.choices)
                until, _ = layer.operator.schedule[-1]
                if until > 0:
                    entries.append({})  # below it the operator's own options hold
                stack.enter_context(layer.operator.pin(**entries[int(choice * len(entries))]))
        yield


@dataclass(frozen=True)
class Lesson:
    """Compute the losses of the two stages, `layerwise` and `end_to_end`."""

    config: DistillConfig
    teacher: nn.Module
    student: nn.Module
    diffusion: Process
    conditions: Conditions
    samples: Data
    accelerator: Accelerator

    def batch(self, step: int) -> Batch:
        """Return this process's slice of the batch of a step, on its device."""
        size = self.config.batch // self.accelerator.num_processes
        start = size * self.accelerator.process_index
        return self._taken(step, slice(start, start + size))

    def show(self, model: nn.Module) -> Tensor:
        """Run a model on the whole first batch, for initialise policies that start from data.

        Of several groups it is the largest, because a layer's activations have one length.
        """
        batch = max(self.groups(self._taken(0, slice(None))), key=lambda group: len(group.clean))
        return self.run(model, self.diffusion.noised(batch.clean, batch.eps, batch.t), batch)

    def _taken(self, step: int, indices: slice) -> Batch:
        """Take pictures out of the batch of a step, and bring them to this process's device."""
        drawn, device = (
            draw(self.config, self.diffusion, self.samples, step),
            self.accelerator.device,
        )
        clean, dropped = drawn.clean[indices].to(device), drawn.dropped[indices].to(device)
        eps, t = drawn.eps[indices].to(device), drawn.t[indices].to(device)
        prompts = drawn.prompts[indices]
        conditioning = self.conditioning(prompts, dropped)
        return Batch(clean, prompts, dropped, eps, t, drawn.choice, conditioning)

    def groups(self, batch: Batch) -> list[Batch]:
        """Split a batch into those that one forward takes; mostly there is one."""
        groups = self.conditions.groups(batch.conditioning)
        return [batch] if len(groups) == 1 else [batch.taken(indices) for indices in groups]

    @torch.no_grad()
    def conditioning(self, prompts: Prompts, dropped: Tensor) -> Conditioning:
        """Encode the prompts, with the empty prompt in place of dropped ones."""
        encoded = self.conditions.encode(prompts)
        if dropped.any():
            return conditions.dropped(encoded, self.conditions.nothing(), dropped)
        return encoded

    def autocast(self) -> contextlib.AbstractContextManager:
        """Compute in the dtype of the settings."""
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def run(self, model: nn.Module, noisy: Tensor, batch: Batch) -> Tensor:
        """Return the model's output in float32."""
        with self.autocast():
            return self.conditions.call(model, noisy, batch.t, batch.conditioning).float()

    def layerwise(self, step: int) -> Terms:
        """Compute the L1 loss of every replaced layer's output.

        Every layer gets the teacher's input, so no gradient flows between layers.
        """
        return self._mean(self._layerwise, self.batch(step))

    def _mean(self, terms: Callable[[Batch], Terms], batch: Batch) -> Terms:
        """Return the mean of the terms over the pictures of a batch."""
        groups = self.groups(batch)
        if len(groups) == 1:
            return terms(batch)
        means: Terms = {}
        for group in groups:
            share = len(group.clean) / len(batch.clean)
            for name, value in terms(group).items():
                means[name] = means.get(name, 0) + share * value
        return means

    def _layerwise(self, batch: Batch) -> Terms:
        with torch.no_grad(), families.capture(self.teacher) as records:
            self.run(self.teacher, self.diffusion.noised(batch.clean, batch.eps, batch.t), batch)
        replaced = [layer for layer in families.layers(self.student) if layer.operator is not None]
        layer_records = [records[layer.index] for layer in replaced]
        outputs = []
        with self.autocast(), pinned(self.student, batch.choice):
            for layer, record in zip(replaced, layer_records, strict=True):
                output = families.apply(
                    layer, record["input"], record["grid"], record["noise"], **record["more"]
                )
                outputs.append(output.float())
        targets = [record["output"].float() for record in layer_records]
        return {"loss": objectives.layerwise(outputs, targets, "l1").mean()}

    def end_to_end(self, step: int) -> Terms:
        """Compute the terms of the objective on one noisy batch."""
        step += self.config.layerwise_steps  # so that the two stages share no batch
        return self._mean(self._end_to_end, self.batch(step))

    def _end_to_end(self, batch: Batch) -> Terms:
        noisy = self.diffusion.noised(batch.clean, batch.eps, batch.t)
        with torch.no_grad(), self.captured(self.teacher) as teacher_records:
            target = self.run(self.teacher, noisy, batch)
        with self.captured(self.student) as student_records, pinned(self.student, batch.choice):
            output = self.run(self.student, noisy, batch)
        comparison = Comparison(
            diffusion=self.diffusion,
            clean=batch.clean,
            eps=batch.eps,
            t=batch.t,
            student=output,
            teacher=target,
            student_features=[record["output"].float() for record in student_records],
            teacher_features=[record["output"].float() for record in teacher_records],
        )
        return self.config.terms(comparison)

    def captured(self, model: nn.Module) -> contextlib.AbstractContextManager:
        """Capture the model's self-attentions where the objective compares features."""
        return families.capture(model) if self.config.terms.features else contextlib.nullcontext([])
