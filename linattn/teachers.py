"""Teachers: real diffusers pipelines, loaded by name, with the card that says how they want to be
sampled.

- A pipeline folder stores no call-time argument; `card.json` beside model_index.json holds steps,
  guidance and side.
- From `data/teachers/dit-nano` to a hub id is a change of name; without a card, diffusers' defaults
  stand in.
- The small ones are trained from scratch by pretraining.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from linattn import conditions, sampling
from linattn.conditions import Conditions
from linattn.diffusion import Diffusion, Process
from linattn.names import hint
from linattn.sampling import Source

HARMLESS = {
    "diffusers.pipelines.pipeline_utils": "Expected types for id2label",
    "transformers.utils.import_utils": "requires torchvision",
}


@dataclass(frozen=True)
class Teacher:
    pipe: DiffusionPipeline
    card: dict[str, Any]
    folder: str

    @property
    def model(self) -> nn.Module:
        return getattr(self.pipe, "transformer", None) or self.pipe.unet

    @property
    def vae(self) -> AutoencoderKL:
        return self.pipe.vae

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @property
    def diffusion(self) -> Process:
        return Diffusion.of(self.pipe.scheduler)

    @cached_property
    def conditions(self) -> Conditions:
        return conditions.of(self.pipe, self.card)

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @property
    def factor(self) -> int:
        return Source.of(self).factor

    @property
    def classes(self) -> int:
        return self.conditions.classes

    def to(self, device: torch.device) -> None:
        """Move all models of the pipeline, text encoders included."""
        self.pipe.to(device)

    def decode(self, latents: Tensor, batch: int = 64) -> Tensor:
        """Pictures (batch, 3, side, side) in [0, 1]."""
        return sampling.decode(self, latents, batch)

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Latents of pictures in [0, 1]."""
        return sampling.encode(self, pictures, batch)


def load(folder: str | Path, device: str | torch.device = "cpu", **options: Any) -> Teacher:
    """Any pipeline folder or hub id; without a card, diffusers' own defaults stand in."""
    _check(folder)
    with _quiet():
        pipe = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options).to(
            device
        )
    pipe.set_progress_bar_config(disable=True)
    path = Path(folder) / "card.json"
    card = json.loads(path.read_text()) if path.exists() else default_card(pipe)
    return Teacher(pipe, card, str(folder))


def _check(folder: str | Path) -> None:
    """A folder without a pipeline, or a path that no hub id can be: diffusers would speak of the
    hub.
    """
    path = Path(folder)
    if (path / "model_index.json").exists():
        return
    if not path.is_dir():
        try:
            validate_repo_id(str(folder))
        except HFValidationError:
            pass
        else:
            return
    place = path if path.is_dir() else path.parent
    there = sorted(each.parent.name for each in place.glob("*/model_index.json"))
    question = hint(path.name, there)
    raise FileNotFoundError(
        f"no pipeline in {folder}, seen from {Path.cwd()}: model_index.json is missing; the "
        f"pipelines in {place} are "
        f"{', '.join(there) or 'none'}" + (f": {question}" if question else "")
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without harmless lines: about every DiT's label names, and what torchvision
    would do.
    """
    told = lambda record: not any(words in record.getMessage() for words in HARMLESS.values())  # noqa: E731
    loggers = [logging.getLogger(name) for name in HARMLESS]
    for logger in loggers:
        logger.addFilter(told)
    bars = [
        each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()
    ]
    for each in bars:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(told)
        for each in bars:
            each.enable_progress_bar()


def default_card(pipe: DiffusionPipeline) -> dict[str, Any]:
    factor, known = 2 ** (len(pipe.vae.config.block_out_channels) - 1), conditions.of(pipe)
    card = {**known.defaults(), "side": known.side * factor}
    return card | ({"labels": labels(pipe)} if hasattr(pipe, "labels") else {})


def labels(pipe: DiffusionPipeline) -> list[str]:
    """The classes' names in their order; of synonyms the first in the alphabet."""
    names: dict[int, str] = {}
    for name, number in getattr(pipe, "labels", {}).items():
        names.setdefault(number, name)
    return [names[number] for number in sorted(names)]
