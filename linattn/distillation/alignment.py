"""Give REPA's term its two sides: the student's hidden states, and features of the clean picture.

- The hidden states are those that the block after a third of the self-attentions is given, as REPA
  aligns after block 4 of 12 in its smaller models (after 8 of 28 in the largest).
- `teacher` aligns with the teacher's own states there, on the latents without noise: one space, so
  no projector. `eye` aligns with features of the decoded picture through a projector of three
  Linears, which learns beside the student and is dropped at the end.
- A block is read by a hook, which torch.compile ignores once it has compiled; so `compile` is
  refused.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import eye, families, sampling
from linattn.distillation.config import DistillConfig
from linattn.distillation.optimizers import Named
from linattn.eye import Eye

WIDENING = 2  # of the projector; REPA's is 2048 for 1152 channels


@dataclass(frozen=True)
class Alignment:
    """Hold what the clean picture is seen by, and the projector that leads there."""

    block: str  # name of the module whose hidden states are aligned
    pipe: Any = None  # decodes the latents for the eye
    eye: Eye | None = None  # None: the teacher's own states
    projector: nn.Module | None = None  # None: the hidden states as they are

    @property
    def named(self) -> Named:
        """Return the projector's parameters, which learn beside the student's."""
        return [] if self.projector is None else list(self.projector.named_parameters("projector"))

    @contextmanager
    def reading(self, model: nn.Module) -> Generator[list[Tensor], None, None]:
        """Return a list that each forward of the model fills with the block's hidden states."""
        states: list[Tensor] = []

        def read(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            states[:] = [args[0] if args else kwargs["hidden_states"]]

        block = model.get_submodule(self.block)
        handle = block.register_forward_pre_hook(read, with_kwargs=True)
        try:
            yield states
        finally:
            handle.remove()

    def project(self, hidden: Tensor) -> Tensor:
        """Bring hidden states (batch, tokens, width) to the channels of the clean features."""
        return hidden if self.projector is None else self.projector(hidden.float())

    @torch.no_grad()
    def seen(self, clean: Tensor, tokens: int) -> Tensor:
        """Return the eye's features of clean latents on the tokens' grid, (batch, tokens, 112)."""
        if self.eye is None:
            raise ValueError("the alignment is with the teacher's states, which no eye sees")
        pictures = sampling.decode(self.pipe, clean).to(clean.device)
        patches = self.eye.patches(pictures)  # (batch, 112, 8, 8)
        resized = F.interpolate(patches, picture_sides(clean, tokens), mode="bilinear")
        return resized.flatten(2).mT


def picture_sides(clean: Tensor, tokens: int) -> tuple[int, int]:
    """Return height and width of the grid on which so many tokens lie over the latents."""
    height, width = clean.shape[-2:]
    patch = round((height * width / tokens) ** 0.5)
    if (height // patch) * (width // patch) != tokens:
        raise ValueError(
            f"{tokens} hidden states do not lie over latents of {height} x {width}: give repa "
            "weight 0, or choose sides that the patches divide"
        )
    return height // patch, width // patch


def create(
    config: DistillConfig, student: nn.Module, pipe: Any, device: torch.device
) -> Alignment | None:
    """Return the alignment of a student whose objective has `repa`, or None.

    Args:
        config: the student and its training.
        student: the converted model.
        pipe: the teacher's pipeline, whose VAE decodes what the eye sees.
        device: where the projector learns.
    """
    if not config.terms.repa or not config.steps:
        return None
    if config.compile:
        raise ValueError(
            "repa reads a block by a hook, which torch.compile ignores: set compile to false, or "
            "give repa weight 0"
        )
    layer = _aligned_layer(student, config.trains)
    block = layer.name.rpartition(".")[0]
    if config.terms.repa_target == "teacher":
        return Alignment(block)
    if getattr(pipe, "vae", None) is None:
        raise ValueError(
            f"repa_target 'eye' sees decoded pictures, and {type(pipe).__name__} has no VAE: "
            "choose 'teacher'"
        )
    projector = _projector(layer.shape.width, config.seed).to(device)
    return Alignment(block, pipe, eye.load(device=str(device)), projector)


def _aligned_layer(student: nn.Module, trains: str) -> families.Layer:
    """Return the layer whose block is given the aligned states, or raise if nothing leads there."""
    layers = families.layers(student)
    index = max(1, len(layers) // 3)
    replaced = [layer.index for layer in layers if layer.operator is not None]
    if index >= len(layers) or (trains != "all" and not any(i < index for i in replaced)):
        raise ValueError(
            f"repa reads what self-attention {index} of {len(layers)} is given, and the replaced "
            f"ones are {replaced}: replace an earlier one, or give repa weight 0"
        )
    return layers[index]


def _projector(width: int, seed: int) -> nn.Module:
    """Draw REPA's projector from the seed alone."""
    wide = WIDENING * width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(width, wide),
            nn.SiLU(),
            nn.Linear(wide, wide),
            nn.SiLU(),
            nn.Linear(wide, Eye.patch_channels),
        )
