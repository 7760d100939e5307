"""Learn one step: draw its batch, run teacher and student on it, compare them, add the gradients.

- A step's pictures, times, noise, dropped prompts and scheduled options come from (seed, step).
  They are drawn for the whole batch before processes take their slices, so two processes of 16
  compute what one of 32 computes.
- All students of one seed see the same pictures, times and noise at the same step, so that
  operators compare.
- A step is learned one micro-batch after the other, and none outlives its backward.
- Prompts are dropped here, and teacher and student get the same ones. Both models are in eval mode,
  so DiT's blocks drop none.
- Where texts have lengths of their own, the pictures of one length are a group: both models run on
  each group, and the terms are the mean over pictures, so that padding is never read.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import conditions, families, surgery
from linattn.conditions import Conditioning, Conditions, Prompts
from linattn.diffusion import Process
from linattn.distillation import conflict, objectives
from linattn.distillation.alignment import Alignment
from linattn.distillation.config import Data, DistillConfig
from linattn.distillation.conflict import Conflict
from linattn.distillation.encoding import Kept
from linattn.distillation.objectives import DISTILLING, HALVES, LASTING, Comparison, Objective
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
    # keyword arguments of the models' forward
    conditioning: Conditioning = field(default_factory=dict)

    def sliced(self, pictures: slice) -> "Batch":
        """Return some pictures of a batch whose prompts are not encoded yet."""
        clean, prompts, dropped = self.clean[pictures], self.prompts[pictures], self.dropped
        return Batch(
            clean, prompts, dropped[pictures], self.eps[pictures], self.t[pictures], self.choice
        )

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
    kept: Kept | None = None  # encodes the prompts where the encoders leave the device
    alignment: Alignment | None = None  # where the objective has `repa`
    linears: Sequence[Tensor] = ()  # weights for `orthogonal`
    conflict: Conflict | None = None  # where the distilling terms may end early

    def batch(self, step: int) -> Batch:
        """Return this process's slice of the batch of a step, on its device."""
        return self._placed(self._slice(step))

    def shares(self, step: int) -> Iterator[tuple[float, Batch]]:
        """Yield what one forward takes of this process's slice, each with its share of the slice.

        It is a micro-batch, or a group of one.
        """
        drawn = self._slice(step)
        if self.kept is not None:
            self.kept.prepare(drawn.prompts)
        count = len(drawn.clean)
        size = self.config.micro or count
        for start in range(0, count, size):
            for group in self.groups(self._placed(drawn.sliced(slice(start, start + size)))):
                yield len(group.clean) / count, group

    def show(self, model: nn.Module) -> Tensor:
        """Run a model on the whole first batch, for initialise policies that start from data.

        Of several groups it is the largest, because a layer's activations have one length.
        """
        drawn = draw(self.config, self.diffusion, self.samples, 0)
        batch = max(self.groups(self._placed(drawn)), key=lambda group: len(group.clean))
        return self.run(model, self.diffusion.noised(batch.clean, batch.eps, batch.t), batch)

    def _slice(self, step: int) -> Batch:
        """Draw the batch of a step, and take this process's slice of it."""
        size = self.config.batch // self.accelerator.num_processes
        start = size * self.accelerator.process_index
        drawn = draw(self.config, self.diffusion, self.samples, step)
        return drawn.sliced(slice(start, start + size))

    def _placed(self, drawn: Batch) -> Batch:
        """Bring a batch to this process's device, and encode its prompts."""
        device = self.accelerator.device
        clean, dropped = drawn.clean.to(device), drawn.dropped.to(device)
        eps, t = drawn.eps.to(device), drawn.t.to(device)
        conditioning = self.conditioning(drawn.prompts, dropped)
        return Batch(clean, drawn.prompts, dropped, eps, t, drawn.choice, conditioning)

    def groups(self, batch: Batch) -> list[Batch]:
        """Split a batch into those that one forward takes; mostly there is one."""
        groups = self.conditions.groups(batch.conditioning)
        return [batch] if len(groups) == 1 else [batch.taken(indices) for indices in groups]

    @torch.no_grad()
    def conditioning(self, prompts: Prompts, dropped: Tensor) -> Conditioning:
        """Encode the prompts, with the empty prompt in place of dropped ones."""
        encoder = self.kept or self.conditions
        encoded = encoder.encode(prompts)
        if dropped.any():
            return conditions.dropped(encoded, encoder.nothing(), dropped)
        return encoded

    def autocast(self) -> contextlib.AbstractContextManager:
        """Compute in the dtype of the settings."""
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)

    def run(self, model: nn.Module, noisy: Tensor, batch: Batch) -> Tensor:
        """Return the model's output in float32; a model in half precision gets its inputs in it."""
        weight = next(model.parameters())
        noisy = noisy.to(weight.dtype) if weight.dtype in HALVES else noisy
        with self.autocast():
            return self.conditions.call(model, noisy, batch.t, batch.conditioning).float()

    def layerwise(self, step: int) -> Terms:
        """Learn from the L1 loss of every replaced layer's output, and return the loss.

        Every layer gets the teacher's input, so no gradient flows between layers.
        """
        return self._learned(step, self._learn_layers)

    def end_to_end(self, step: int) -> Terms:
        """Learn from the objective on one noisy batch, and return its terms."""
        number = step + self.config.layerwise_steps  # so that the two stages share no batch
        if self.conflict is not None and self.conflict.due(step):
            self.conflict.cosines.append(self.agreement(number))
        return self._learned(number, self._learn_model)

    @property
    def objective(self) -> Objective:
        """Return the objective that holds now: without the distilling terms once they ended."""
        ended = self.conflict is not None and self.conflict.ended
        return self.config.terms.only(LASTING) if ended else self.config.terms

    def agreement(self, step: int) -> float:
        """Return the cosine of the gradients of task and distilling terms over the attentions."""
        attentions = [p for _, p in surgery.attention_parameters(self.student) if p.requires_grad]
        sides = [self.config.terms.only(names) for names in (("task",), DISTILLING)]
        total: Tensor | float = 0.0
        for share, batch in self.shares(step):
            with self.comparing(batch) as comparison:
                losses = [side(comparison)["loss"] for side in sides]
                gradients = [conflict.gradient(loss, attentions) for loss in losses]
            total = total + share * torch.stack(gradients)
        task, distilling = cast(Tensor, self.accelerator.reduce(total, "mean"))
        return F.cosine_similarity(task, distilling, dim=0).item()

    def _learned(self, step: int, learn: Callable[[Batch, float], Terms]) -> Terms:
        """Add the gradients of every micro-batch, and return the terms of the whole slice.

        A term is a mean over pictures, so those of the micro-batches are weighed by their share.
        """
        totals: Terms = {}
        for share, batch in self.shares(step):
            for name, value in learn(batch, share).items():
                weighed = value.detach() * share
                totals[name] = totals[name] + weighed if name in totals else weighed
        return totals

    def _learn_layers(self, batch: Batch, share: float) -> Terms:
        """Add the gradients layer by layer, so that one layer's graph is held at a time."""
        with torch.no_grad(), families.capture(self.teacher) as records:
            self.run(self.teacher, self.diffusion.noised(batch.clean, batch.eps, batch.t), batch)
        replaced = [layer for layer in families.layers(self.student) if layer.operator is not None]
        losses = []
        with pinned(self.student, batch.choice):
            for layer in replaced:
                loss = self._layer_loss(layer, records[layer.index])
                add_gradients(loss * share / len(replaced))
                losses.append(loss.detach())
                records[layer.index].clear()
        return {"loss": torch.stack(losses).mean()}

    def _layer_loss(self, layer: families.Layer, record: Mapping[str, Any]) -> Tensor:
        """Return the L1 loss of one layer on the teacher's input."""
        with self.autocast():
            output = families.apply(
                layer, record["input"], record["grid"], record["noise"], **record["more"]
            )
        return objectives.layer_distance(output, record["output"], "l1")

    def _learn_model(self, batch: Batch, share: float) -> Terms:
        """Add the gradients of the objective."""
        with self.comparing(batch) as comparison:
            terms = self.objective(comparison)
            add_gradients(terms["loss"] * share)
        return terms

    @contextlib.contextmanager
    def comparing(self, batch: Batch) -> Iterator[Comparison]:
        """Run both models on a batch, and compare what they return.

        The backward runs under the pinned schedule, because checkpointing computes blocks again.
        """
        noisy = self.diffusion.noised(batch.clean, batch.eps, batch.t)
        with torch.no_grad(), self.captured(self.teacher) as teacher_records:
            target = self.run(self.teacher, noisy, batch)
        with (
            self.captured(self.student) as student_records,
            self.reading(self.student) as states,
            pinned(self.student, batch.choice),
        ):
            output = self.run(self.student, noisy, batch)
            yield Comparison(
                diffusion=self.diffusion,
                clean=batch.clean,
                eps=batch.eps,
                t=batch.t,
                student=output,
                teacher=target,
                student_features=[record["output"] for record in student_records],
                teacher_features=[record["output"] for record in teacher_records],
                aligned=self.aligned(states, batch),
                linears=self.linears,
            )

    def captured(self, model: nn.Module) -> contextlib.AbstractContextManager:
        """Capture the self-attentions' outputs where the objective compares them.

        Their inputs would be another 3.2 GB a picture of FLUX.1 at 1024 px.
        """
        if not self.objective.features:
            return contextlib.nullcontext([])
        return families.capture(model, outputs_only=True)

    def reading(self, model: nn.Module) -> contextlib.AbstractContextManager:
        """Read the hidden states that `repa` aligns, where the objective has it."""
        if self.alignment is None or not self.objective.repa:
            return contextlib.nullcontext([])
        return self.alignment.reading(model)

    def aligned(self, states: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor] | None:
        """Return the student's projected states and the clean picture's features, if any."""
        if self.alignment is None or not states:
            return None
        hidden = states[0]
        if self.alignment.eye is not None:
            clean = self.alignment.seen(batch.clean, hidden.shape[1])
        else:
            clean = self._clean_states(self.alignment, batch)
        return self.alignment.project(hidden), clean

    @torch.no_grad()
    def _clean_states(self, alignment: Alignment, batch: Batch) -> Tensor:
        """Return the teacher's hidden states for the latents at the end of a draw."""
        last = dataclasses.replace(batch, t=torch.zeros_like(batch.t))
        with alignment.reading(self.teacher) as states:
            noisy = self.diffusion.noised(batch.clean, batch.eps, last.t)
            self.run(self.teacher, noisy, last)
        return states[0]


def add_gradients(loss: Tensor) -> None:
    """Run the backward, except under `torch.no_grad`, where the terms alone are of interest."""
    if torch.is_grad_enabled():
        loss.backward()
