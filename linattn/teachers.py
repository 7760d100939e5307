"""Load teachers: diffusers pipelines, with the card that says how they are sampled.

- A pipeline folder stores no argument of a call, so `card.json` beside model_index.json holds
  steps, guidance and side. Without a card, diffusers' defaults are used.
- A folder and a hub id are loaded alike.
- The small teachers are trained from scratch by pretraining.
"""

import logging
import os
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

from linattn import conditions, configs, project, reader, sampling, sums
from linattn.conditions import Conditions
from linattn.diffusion import Diffusion, Process
from linattn.names import hint, short
from linattn.sampling import Source

__all__ = ["Teacher", "default_card", "labels", "load"]

# Messages of these loggers that need no attention, by a phrase: of every DiT's label names, and of
# what torchvision would do.
HARMLESS = {
    "diffusers.pipelines.pipeline_utils": "Expected types for id2label",
    "transformers.utils.import_utils": "requires torchvision",
}


DRAWING = ("steps", "guidance", "side")  # without which nothing is drawn
NEEDED = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer.json")
LONGEST = 4096  # characters of a path


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
    changes = sampling.checked_card({} if card is None else card, "card")
    _check(folder)
    _check_options(device, options)
    if os.path.isdir(folder):
        sums.check(Path(folder))
        _check_files(Path(folder))
    noted = sampling.card_in(folder)
    with quiet():
        pipe = _pipeline(folder, options, device)
    pipe.set_progress_bar_config(disable=True)
    teacher = Teacher(pipe, {**_whole_card(pipe, noted), **changes}, str(folder))
    _check_drawing(teacher)
    return teacher


def _pipeline(folder: str | Path, options: Mapping[str, Any], device: Any) -> Any:
    """Load a pipeline; where a folder holds none that can be, the error names it."""
    load_from = DiffusionPipeline.from_pretrained
    if not os.path.isdir(folder):  # of the hub, whose errors say what happened there
        return load_from(str(folder), use_safetensors=True, **options).to(device)
    try:  # a weight that its file lacks shows when it is moved
        return load_from(str(folder), use_safetensors=True, **options).to(device)
    except Exception as error:  # loaders of other packages raise whatever they meet
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the pipeline in {folder} cannot be loaded ({type(error).__name__}: {reason}); fetch "
            "or save it again"
        ) from error


def _whole_card(pipe: Any, noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card with diffusers' defaults for the entries that it lacks."""
    if not noted:
        return default_card(pipe)
    lacking = [key for key in DRAWING if key not in noted]
    usual = default_card(pipe) if lacking else {}
    return {**{key: usual[key] for key in lacking}, **noted}


def _check_options(device: Any, options: Mapping[str, Any]) -> None:
    project.require_device(device)
    dtype = options.get("torch_dtype")
    if isinstance(dtype, str) and dtype != "auto":
        raise ValueError(f"torch_dtype is {short(dtype)}; pass torch's own, as torch.float16")


def _check_files(folder: Path) -> None:
    """Raise ValueError for the first file of settings that is cut or holds something else."""
    in_parts = [path for path in sorted(folder.glob("*/*.json")) if path.is_file()]
    for path in (folder / "model_index.json", *in_parts):
        content = reader.mapping(project.read_json(path), str(path))
        if not content and path.name in NEEDED:
            raise ValueError(f"{path} is empty; fetch it again, or save the pipeline whole")
        configs.check(path, content)


def _check_drawing(teacher: Teacher) -> None:
    """Raise ValueError where the pipeline cannot draw as its card says."""
    try:
        sampling.Plan.of(Source.of(teacher), None, None, None, "card")
    except ValueError as error:
        raise ValueError(f"the card of {teacher.folder}: {error}") from None


def _check(folder: str | Path) -> None:
    """Raise FileNotFoundError for a folder without a pipeline and for a path that is no hub id.

    Diffusers' own error would be about the hub.
    """
    if not isinstance(folder, (str, os.PathLike)) or not str(folder):
        raise ValueError(f"folder is {short(folder)}; it must be a path, or a hub id")
    is_pipeline = os.path.isfile(os.path.join(folder, "model_index.json"))
    if is_pipeline or (not os.path.isdir(folder) and _is_hub_id(str(folder))):
        return
    if len(str(folder)) > LONGEST or "\0" in str(folder):
        raise FileNotFoundError(f"no pipeline in {short(folder)}; name its folder, or a hub id")
    path = Path(folder)
    parent = path if os.path.isdir(path) else path.parent
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
