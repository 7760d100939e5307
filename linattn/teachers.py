"""Load teachers: diffusers pipelines, with the card that says how they are sampled.

- A pipeline folder stores no argument of a call, so `card.json` beside model_index.json holds
  steps, guidance and side. Without a card, diffusers' defaults are used.
- A folder and a hub id are loaded alike.
- The small teachers are trained from scratch by pretraining.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from linattn import conditions, sampling, sums
from linattn.conditions import Conditions
from linattn.diffusion import Diffusion, Process
from linattn.names import hint
from linattn.sampling import Source

__all__ = ["Teacher", "default_card", "labels", "load"]

# Messages of these loggers that need no attention, by a phrase: of every DiT's label names, and of
# what torchvision would do.
HARMLESS = {
    "diffusers.pipelines.pipeline_utils": "Expected types for id2label",
    "transformers.utils.import_utils": "requires torchvision",
}


@dataclass(frozen=True)
class Teacher:
    """Hold a pipeline and the card that says how it is sampled."""

    pipe: Any  # a diffusers pipeline
    card: dict[str, Any]  # how the teacher is sampled: steps, guidance, side
    folder: str  # the folder or hub id that it was loaded from

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
    def judged(self) -> bool:
        """Say whether the teacher draws the small world, whose judge can mark its pictures.

        Such a teacher passed a gate of the judge's when it was trained, and its card says so.
        """
        return "gate" in self.card

    @property
    def classes(self) -> int:
        """Return how many classes a class-conditional teacher has."""
        return cast(Any, self.conditions).classes

    def to(self, device: torch.device) -> None:
        """Move all models of the pipeline, text encoders included."""
        self.pipe.to(device)

    def decode(self, latents: Tensor, batch: int = 64) -> Tensor:
        """Return pictures (batch, 3, side, side) in [0, 1]."""
        return sampling.decode(self, latents, batch)

    def encode(self, pictures: Tensor, batch: int = 64) -> Tensor:
        """Return the latents of pictures in [0, 1]."""
        return sampling.encode(self, pictures, batch)


def load(
    folder: str | Path,
    device: str | torch.device = "cpu",
    card: Mapping[str, Any] | None = None,
    **options: Any,
) -> Teacher:
    """Load a pipeline folder or hub id with its card, or with diffusers' defaults.

    Args:
        folder: a pipeline folder, or a repository id of the hub.
        device: where the pipeline's models are moved.
        card: entries that replace those of the pipeline's own card, such as side or guidance.
        options: keyword arguments of `DiffusionPipeline.from_pretrained`, such as torch_dtype or
            revision.
    """
    _check(folder)
    if Path(folder).is_dir():
        sums.check(Path(folder))
    with quiet():
        pipe = DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options)
        pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    path = Path(folder) / "card.json"
    own = json.loads(path.read_text()) if path.exists() else default_card(pipe)
    return Teacher(pipe, {**own, **(card or {})}, str(folder))


def _check(folder: str | Path) -> None:
    """Raise FileNotFoundError for a folder without a pipeline and for a path that is no hub id.

    Diffusers' own error would be about the hub.
    """
    path = Path(folder)
    if (path / "model_index.json").exists() or (not path.is_dir() and _is_hub_id(str(folder))):
        return
    parent = path if path.is_dir() else path.parent
    names = sorted(index.parent.name for index in parent.glob("*/model_index.json"))
    question = hint(path.name, names)
    ending = f": {question}" if question else ""
    raise FileNotFoundError(
        f"no pipeline in {folder}, seen from {Path.cwd()}: model_index.json is missing; the "
        f"pipelines in {parent} are {', '.join(names) or 'none'}{ending}"
    )


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and harmless messages."""
    loggers = [logging.getLogger(name) for name in HARMLESS]
    libraries: list[Any] = [diffusers_logging, transformers_logging]
    with_bars = [library for library in libraries if library.is_progress_bar_enabled()]
    for logger in loggers:
        logger.addFilter(_is_worth_reading)
    for library in with_bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_worth_reading)
        for library in with_bars:
            library.enable_progress_bar()


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return not any(phrase in record.getMessage() for phrase in HARMLESS.values())


def default_card(pipe: Any) -> dict[str, Any]:
    """Return the card of a pipeline that has none: diffusers' defaults.

    Args:
        pipe: a diffusers pipeline of a supported family.
    """
    conditioning = conditions.of(pipe)
    side = conditioning.side * conditioning.factor(pipe.vae.config)
    card = {**conditioning.defaults(), "side": side}
    if hasattr(pipe, "labels"):
        card["labels"] = labels(pipe)
    return card


def labels(pipe: Any) -> list[str]:
    """Return the classes' names in their order; of synonyms the alphabetically first.

    Args:
        pipe: a diffusers pipeline; one without labels gives an empty list.
    """
    names: dict[int, str] = {}
    for name, number in getattr(pipe, "labels", {}).items():
        names.setdefault(number, name)
    return [names[number] for number in sorted(names)]
