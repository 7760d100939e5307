"""Find the model that a user names, and build it on the meta device, where it takes no memory."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from linattn import families, project
from linattn.advise.known import KNOWN, SHORTER_TEXT, TEXT
from linattn.names import nearest

FACTOR = 8  # pixels a side of one latent, where no VAE's config says it


@dataclass(frozen=True)
class Backbone:
    """Hold a model without weights, and what its config does not say."""

    title: str  # as a table calls it
    model: Any  # a diffusers model on the meta device
    text: int  # tokens of text that it reads
    factor: int = FACTOR  # pixels a side of one latent

    @property
    def cell(self) -> int:
        """Return the pixels a side of one token, at the finest level."""
        if families.family(self.model).rotates:
            return 2 * self.factor  # its tokens are packed from 2 x 2 latents
        return self.factor * (self.model.config.get("patch_size") or 1)

    def example_side(self, side: int) -> int:
        """Return the side that the family's `example` takes for a picture of `side` px."""
        if side < self.cell or side % self.cell:
            below = max(side // self.cell, 1) * self.cell
            raise ValueError(
                f"a side of {side} px is no multiple of {self.cell}, the pixels of one token of "
                f"{self.title}; {below} and {below + self.cell} are"
            )
        return side // (self.cell if families.family(self.model).rotates else self.factor)


def find(name: Any, text: int | None = None) -> Backbone:
    """Return the backbone of a known shape, a folder, a hub id, or a loaded model or pipeline."""
    if not isinstance(name, (str, Path)):
        model: Any = families.model_of(name)
        return _built(type(model).__name__, type(model).__name__, model.config, text)
    if str(name) in KNOWN:
        known = KNOWN[str(name)]
        return _built(known.title, known.backbone, known.config, text)
    if Path(name).is_dir():
        return _of_folder(Path(name), text)
    if _is_hub_id(str(name)):
        return _of_pipeline(str(name), str(name), text)
    raise nearest("model", str(name), KNOWN, f"{', '.join(KNOWN)}, a folder, or a hub id")


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _of_folder(folder: Path, text: int | None) -> Backbone:
    if (folder / "model_index.json").is_file():
        card = project.read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
        return _of_pipeline(str(folder), folder.name, text or card.get("text_length"))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds neither model_index.json, as a pipeline's folder does, nor "
            "config.json, as a model's does"
        )
    config = project.read_json(folder / "config.json")
    return _built(folder.name, config.get("_class_name", ""), config, text)


def _of_pipeline(source: str, title: str, text: int | None) -> Backbone:
    """Read the configs of a pipeline, from its folder or from the hub; no weights are loaded."""
    try:
        index = _config(DiffusionPipeline, source)
        part = "transformer" if index.get("transformer") else "unet"
        if not index.get(part):
            raise ValueError(f"{source} names neither a transformer nor a UNet")
        backbone = index[part][1]
        config = _config(_class(backbone), source, subfolder=part)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{source} is no folder here and its configs cannot be read from the hub: {reason} "
            f"Name a folder, or a known shape, which needs no file: {', '.join(KNOWN)}"
        ) from None
    text = SHORTER_TEXT.get(index.get("_class_name", "")) if text is None else text
    return _built(title, backbone, config, text, _factor(source))


def _config(kind_of_config: Any, source: str, **where: Any) -> dict[str, Any]:
    return dict(kind_of_config.load_config(source, **where))


def _factor(source: str) -> int:
    """Return the pixels a side of one latent, from the VAE's config where it has levels."""
    with contextlib.suppress(OSError):
        levels = _config(AutoencoderKL, source, subfolder="vae").get("block_out_channels")
        return 2 ** (len(levels) - 1) if levels else FACTOR
    return FACTOR


def _built(
    title: str,
    backbone: str,
    config: Mapping[str, Any],
    text: int | None,
    factor: int = FACTOR,
) -> Backbone:
    with torch.device("meta"):
        model = _class(backbone).from_config(dict(config))
    families.family(model)  # raises where the class is not supported
    text = TEXT[backbone] if text is None else text
    if text < 0:
        raise ValueError(f"{text} tokens of text; a text has 0 or more")
    return Backbone(title, model.eval(), text, factor)


def _class(name: str) -> Any:
    """Return diffusers' class of a model."""
    found_class = getattr(diffusers, name, None)
    if not (isinstance(found_class, type) and issubclass(found_class, nn.Module)):
        raise ValueError(
            f"{name or 'a config without _class_name'} is no model of diffusers "
            f"{diffusers.__version__}"
        )
    return found_class
