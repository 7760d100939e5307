"""Run one step of training without memory, and count what it holds beside the weights.

Models are built and converted on the meta device. The step runs on PyTorch's fake tensors, which
know the sizes of every operation, autocast and our kernels included.

On the CPU the estimates for tiny models of all families, with all operators, were .92 to 1.00 of
what PyTorch's allocator handed out in a step. What is missing oneDNN takes inside a convolution:
1.4 MB at once in bfloat16, whatever the batch.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from linattn import conditions, families
from linattn.attention.grid import Grid
from linattn.conditions import Conditioning
from linattn.diffusion import Process
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import convert, frozen, recomputing
from linattn.distillation.lesson import Batch, Lesson
from linattn.distillation.parameters import inside_attention, require, select
from linattn.families.qwen import MASK, STATES, PaddedCaptions
from linattn.memory.live import peak_of
from linattn.memory.paths import taken

META, CPU = torch.device("meta"), torch.device("cpu")
COUNTS = (2, 3)  # pictures; of a single one some copies are views
ARGUMENTS = (STATES, "pooled_projections", "guidance", "class_labels", "text_embeds")


@dataclass(frozen=True)
class Shapes:
    """Hold what a step's memory depends on, beside the settings."""

    model: nn.Module  # the teacher's, in the dtype it trains in; on any device
    diffusion: Process  # of the teacher
    side: int  # of the latents
    text: int  # tokens of a prompt; 0 where the model takes labels


@dataclass(frozen=True)
class Growth:
    """Hold the bytes of a step: some whatever the pictures, and more with each picture."""

    fixed: int
    picture: int


def growth(shapes: Shapes, config: DistillConfig, device: str = "cuda") -> Growth:
    """Return what the costlier stage holds at its peak, beside weights and optimizer.

    Args:
        shapes: the teacher's, as `Shapes` holds them.
        config: the student and its training.
        device: where it is trained, "cuda" or "cpu".
    """
    lesson = lesson_of(shapes, config)
    selected = select(lesson.student, config.trains)
    inside = inside_attention(lesson.student, selected)
    stages = [
        (lesson._learn_model, dict(selected) if config.steps else {}),
        (lesson._learn_layers, dict(inside) if config.layerwise_steps else {}),
    ]
    peaks = []
    with FakeTensorMode(allow_non_fake_inputs=True), taken(device):
        for model in (lesson.teacher, lesson.student):
            model._apply(_fake)
        _fill_caches(lesson, batch_of(lesson, shapes, 1))
        for learn, names in stages:
            learning = [(n, p) for n, p in lesson.student.named_parameters() if n in names]
            require(lesson.student, learning)
            if learning:
                peaks.append([_peak(lesson, learn, shapes, count) for count in COUNTS])
    picture = max((more - fewer for fewer, more in peaks), default=0)
    fixed = max((fewer - COUNTS[0] * picture for fewer, _ in peaks), default=0)
    return Growth(max(fixed, 0), picture)


def lesson_of(shapes: Shapes, config: DistillConfig) -> Lesson:
    """Return a lesson whose models have no memory; its batches are made by `batch_of`."""
    config = counted(config)
    teacher = frozen(on_meta(shapes.model))
    pipe = SimpleNamespace(transformer=teacher, vae=nn.Identity(), vae_scale_factor=8)
    conditioner: Any = conditions.of(pipe)
    conditioner.groups = lambda conditioning: [slice(None)]  # all texts have one length
    conditioner.arguments = with_context(conditioner, shapes)
    alone: Any = SimpleNamespace(device=CPU, num_processes=1, process_index=0)
    student = convert(teacher, config)
    data: Any = ()
    return Lesson(config, teacher, student, shapes.diffusion, conditioner, data, alone)


def counted(config: DistillConfig) -> DistillConfig:
    """Leave out what adds nothing to a step's peak and cannot run without memory.

    A start from data writes weights that are there anyway. REPA's second forward is without
    gradients, and its projector is smaller than a block.
    """
    terms = config.terms
    if terms.repa or terms.orthogonal:
        terms = dataclasses.replace(terms, repa=0.0, orthogonal=0.0, task=terms.task or 1.0)
    return dataclasses.replace(config, initialise="all", objective=terms, until="end")


def with_context(conditioner: Any, shapes: Shapes) -> Any:
    """Let the grid of rotary positions come with the call, and read a mask of the text outside.

    Values of fake tensors cannot be read: neither FLUX's ids nor Qwen-Image's mask, which is real.
    """
    arguments, family = conditioner.arguments, families.family(conditioner.model)
    if not family.rotates:
        return arguments
    grid = Grid(shapes.side // 2, shapes.side // 2, shapes.text)

    def told(noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        context = families.Context.of(grid, t / 1000, noisy)
        extras = {family.handed_down: {families.KEY: context}}
        with _disable_current_modes() if MASK in conditioning else contextlib.nullcontext():
            return arguments(noisy, t, conditioning) | extras

    return told


def on_meta(model: nn.Module) -> nn.Module:
    """Build a model of the same class, config and dtype without memory."""
    maker: Any = type(model)
    with META:
        made = maker.from_config(dict(vars(model)["_internal_dict"]))
    return nn.Module.to(made, next(model.parameters()).dtype)


def batch_of(lesson: Lesson, shapes: Shapes, count: int) -> Batch:
    """Return a batch of `count` pictures without memory."""
    channels, side = lesson.conditions.channels, shapes.side
    clean = torch.empty(count, channels, side, side, device=CPU)
    t = torch.zeros(count, dtype=torch.long, device=CPU)
    conditioning = conditioning_of(lesson.teacher, shapes, count)
    return Batch(clean, [], torch.zeros(count), torch.empty_like(clean), t, 0.0, conditioning)


def conditioning_of(model: nn.Module, shapes: Shapes, count: int) -> Conditioning:
    """Return encoded prompts of the true length, without memory."""
    arguments = families.family(model).example(model, None, count, 0.5)
    arguments = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
    conditioning: dict[str, Tensor] = {
        name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None
    }
    if STATES in conditioning:
        states = conditioning[STATES]
        conditioning[STATES] = states.new_empty(count, shapes.text, states.shape[-1])
    if families.family(model).conditions is PaddedCaptions:
        with _disable_current_modes():
            conditioning[MASK] = torch.ones(count, shapes.text, dtype=torch.bool)
    return conditioning


def _peak(lesson: Lesson, learn: Any, shapes: Shapes, count: int) -> int:
    """Return the peak of one micro-batch; gradients count with the weights, so they are dropped."""
    handles = []
    for parameter in lesson.student.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(_drop))
    try:
        with recomputing(lesson.config.checkpointing, lesson.student):
            batch = batch_of(lesson, shapes, count)
            return peak_of(lambda: learn(batch, 1.0))
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _fill_caches(lesson: Lesson, batch: Batch) -> None:
    """Run both models once: what they keep from then on, as Qwen-Image does, is not a step's."""
    for model in (lesson.teacher, lesson.student):
        lesson.run(model, batch.clean, batch)


def _fake(tensor: Tensor) -> Tensor:
    """Return a tensor that claims to lie on the CPU, where every operation knows its sizes."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
