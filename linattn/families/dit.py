"""DiT: one stack of blocks on square patches, self-attention in attn1, and class labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.base import Family, Model, Slot, latents, required, timesteps
from linattn.families.conditions import Conditioning, Conditions, Prompts
from linattn.families.processors import SelfAttention
from linattn.names import short

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are


class Labels(Conditions):
    """Condition DiT on one class label a picture."""

    @property
    def classes(self) -> int:
        """Return the number of classes by the card, or else by the model's config."""
        classes = (
            self.card.get("labels") or self.card.get("classes") or self.config.num_embeds_ada_norm
        )
        return classes if isinstance(classes, int) else len(classes)

    def check(self, prompts: Any) -> Tensor:
        try:
            labels = torch.as_tensor(prompts)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"prompts are {short(prompts)}; {type(self.model).__name__} takes class numbers, "
                f"0 to {self.classes - 1}"
            ) from None
        fraction = labels.dtype == torch.bool or not _is_whole(labels)
        if labels.ndim != 1 or labels.numel() == 0 or fraction:
            raise ValueError(
                f"labels are {tuple(labels.shape)} {labels.dtype}; pass one whole number a "
                "picture, shape (N,)"
            )
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}; the teacher knows 0 to "
                f"{self.classes - 1}"
            )
        return labels.cpu().long()

    def words(self, prompts: Prompts) -> list[str]:
        names = self.card.get("labels") or {}
        labels = self.check(prompts).tolist()
        return [names[label] if names else f"class {label}" for label in labels]

    def encode(self, prompts: Prompts) -> Conditioning:
        return {"class_labels": self.check(prompts).to(self.device)}

    def nothing(self) -> Conditioning:
        return {"class_labels": torch.full((1,), NULL_CLASS, device=self.device)}


def _is_whole(numbers: Tensor) -> bool:
    return not numbers.is_floating_point() and not numbers.is_complex()


class DiT(Family):
    backbone = "DiT"
    models = "DiT"
    conditions = Labels
    squares_only = True  # the model's last step takes the root of the number of tokens

    def attentions(self, model: Model) -> Iterator[Slot]:
        trained = (model.config.sample_size // model.config.patch_size) ** 2
        for index, block in enumerate(model.transformer_blocks):
            yield Slot(f"transformer_blocks.{index}.attn1", block.attn1, SelfAttention, trained)

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        sample = required(model, arguments, self.sample)  # (batch, channels, height, width)
        rows, columns = sample.shape[-2:]
        height, width = rows // model.config.patch_size, columns // model.config.patch_size
        if self.squares_only and height != width:
            raise ValueError(
                f"{type(model).__name__} draws squares only: latents of {rows} x {columns} are "
                f"{height} x {width} tokens, which its last step would lay out as a square, "
                "scrambled; crop or pad them"
            )
        return Grid(height, width)

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        sample = latents(model, side, batch, model.config.patch_size)
        return {
            "hidden_states": sample,
            "timestep": timesteps(noise, batch, sample.device),
            "class_labels": torch.zeros(batch, dtype=torch.long, device=sample.device),
        }
