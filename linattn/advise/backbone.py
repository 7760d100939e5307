"""Find the model that a user names, and build it on the meta device, where it takes no memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from linattn import families, project
from linattn.configs import class_name
from linattn.names import nearest
from linattn.shapes import SHAPES

INDEX, CONFIG = "model_index.json", "config.json"
CONFIGS = [INDEX, CONFIG, f"*/{CONFIG}"]
PARTS = ("transformer", "unet")  # of a pipeline: where its denoising model lies
ALIASES = {"sd35-medium": "sd35"}  # as its authors name it
# Tokens of a prompt of the pipelines that read less than others of their family.
SHORTER_TEXT = {"PixArtAlphaPipeline": 120}
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
        if families.family(self.model).packs:
            return 2 * self.factor
        return self.factor * (self.model.config.get("patch_size") or 1)

    def example_side(self, side: int) -> int:
        """Return the side that the family's `example` takes for a picture of `side` px."""
        if side < self.cell or side % self.cell:
            below = max(side // self.cell, 1) * self.cell
            raise ValueError(
                f"a side of {side} px is no multiple of {self.cell}, the pixels of one token of "
                f"{self.title}; {below} and {below + self.cell} are"
            )
        return side // (self.cell if families.family(self.model).packs else self.factor)


def find(name: Any, text: int | None = None) -> Backbone:
    """Return the backbone of a known shape, a folder, a hub id, or a loaded model or pipeline."""
    if not isinstance(name, (str, Path)):
        model: Any = families.model_of(name)
        return _built(type(model).__name__, type(model).__name__, model.config, text)
    known = ALIASES.get(str(name), str(name))
    if known in SHAPES:
        shape = SHAPES[known]
        return _built(shape.name, shape.model.__name__, shape.config, text)
    if Path(name).is_dir():
        return _of_folder(Path(name), Path(name).name, text)
    if _is_hub_id(str(name)):
        return _of_folder(_downloaded(str(name)), str(name), text)
    raise nearest("model", str(name), SHAPES, f"{', '.join(SHAPES)}, a folder, or a hub id")


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _downloaded(name: str) -> Path:
    """Return a local folder with the configs of a repository of the hub, without its weights."""
    try:
        return Path(snapshot_download(name, allow_patterns=CONFIGS))
    except Exception as error:  # the network, the hub and its cache raise errors of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"there is no folder {name!r} here, and the Hugging Face hub did not give its configs "
            f"({reason}): name a folder, or a known shape, which needs no file: {', '.join(SHAPES)}"
        ) from None


def _of_folder(folder: Path, title: str, text: int | None) -> Backbone:
    """Read the configs of a pipeline's folder, or that of a model's."""
    if not (folder / INDEX).is_file():
        config = _read(folder / CONFIG)
        if not config:
            raise ValueError(
                f"{folder} holds neither {INDEX}, as a pipeline's folder does, nor {CONFIG}, as a "
                "model's does"
            )
        return _built(title, class_name(config), config, text)
    index = _read(folder / INDEX)
    config = next(filter(None, (_read(folder / part / CONFIG) for part in PARTS)), None)
    if config is None:
        raise ValueError(f"{folder} holds no {CONFIG} below {' or '.join(PARTS)}")
    usual = SHORTER_TEXT.get(index.get("_class_name", ""))
    length = _read(folder / "card.json").get("text_length", usual)
    built = _built(title, class_name(config), config, text, length)
    conditions, vae = families.family(built.model).conditions, _read(folder / "vae" / CONFIG)
    return replace(built, factor=conditions.factor(vae)) if conditions and vae else built


def _read(file: Path) -> dict[str, Any]:
    return project.read_json(file) if file.is_file() else {}


def _built(
    title: str,
    backbone: str,
    config: Mapping[str, Any],
    text: int | None,
    length: int | None = None,
) -> Backbone:
    with torch.device("meta"):
        model = _class(backbone).from_config(dict(config))
    family = families.family(model)  # raises where the class is not supported
    text = family.text_tokens(length) if text is None else text
    if text < 0:
        raise ValueError(f"{text} tokens of text; a text has 0 or more")
    return Backbone(title, model.eval(), text)


def _class(name: str) -> Any:
    """Return diffusers' class of a model."""
    model_class = getattr(diffusers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise ValueError(
            f"{name or 'a config without _class_name'} is no model of diffusers "
            f"{diffusers.__version__}"
        )
    return model_class
