"""Add up the memory of a training: what it takes before the first picture, and for each."""

from dataclasses import dataclass

import torch
from torch import nn

from linattn import families
from linattn.distillation.config import DistillConfig
from linattn.distillation.objectives import HALVES
from linattn.distillation.parameters import muon_matrices, select
from linattn.memory.step import Shapes, growth, lesson_of

GB = 1e9  # as devices are sold


@dataclass(frozen=True)
class Need:
    """Hold the bytes of a training on one device."""

    weights: int  # the teacher's model
    own: int  # what the student does not share with it
    learning: int  # masters, average, gradients and the optimizer's states
    encoders: int  # text encoders and VAE, where they stay
    step: int = 0  # temporaries of a step that no picture adds to
    picture: int = 0  # of each picture of a micro-batch

    @property
    def fixed(self) -> int:
        """Return the bytes that are taken before the first picture."""
        return self.weights + self.own + self.learning + self.encoders

    def total(self, pictures: int) -> int:
        """Return the bytes of a step of so many pictures at once."""
        return self.fixed + self.step + pictures * self.picture

    def fits(self, size: float) -> int:
        """Return how many pictures at once fit into so many bytes."""
        return max(0, int((size - self.fixed - self.step) // max(1, self.picture)))


def fixed(shapes: Shapes, config: DistillConfig, encoders: int = 0) -> Need:
    """Return the memory without that of a step, by arithmetic.

    Args:
        shapes: the teacher's, as `Shapes` holds them.
        config: the student and its training.
        encoders: bytes of text encoders and VAE.
    """
    student = lesson_of(shapes, config).student
    weights, of_student = bytes_of(shapes.model), bytes_of(student)
    shared = 0 if config.trains == "all" else _outside(student)
    stay = encoders if config.encoders == "stay" else 0
    return Need(weights, of_student - shared, _learning(student, config), stay)


def needed(shapes: Shapes, config: DistillConfig, encoders: int = 0, device: str = "cuda") -> Need:
    """Return the memory of a training, that of its steps included; this takes seconds.

    Args:
        shapes: the teacher's, as `Shapes` holds them.
        config: the student and its training.
        encoders: bytes of text encoders and VAE.
        device: where it is trained, "cuda" or "cpu".
    """
    base, more = fixed(shapes, config, encoders), growth(shapes, config, device)
    return Need(base.weights, base.own, base.learning, base.encoders, more.fixed, more.picture)


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _outside(student: nn.Module) -> int:
    """Return the bytes outside the self-attentions, which `sharing_copy` shares."""
    inside = tuple(f"{layer.name}." for layer in families.layers(student))
    state = [*student.named_parameters(), *student.named_buffers()]
    return sum(tensor.nbytes for name, tensor in state if not name.startswith(inside))


def _learning(student: nn.Module, config: DistillConfig) -> int:
    """Return the bytes of all that is held for each parameter that learns, in float32 or wider."""
    matrices = muon_matrices(student) if config.optimizer == "muon" else set()
    size = 0
    for name, parameter in select(student, config.trains):
        half = parameter.dtype in HALVES
        wide = 4 if half else torch.finfo(parameter.dtype).bits // 8
        states = 1 if name in matrices else 2  # momentum, or AdamW's two moments
        size += parameter.numel() * wide * (half + 1 + 1 + states)  # master, average, gradient
    return size
