"""Write and read a student's folder: `linattn.json` and the weights that it describes.

The card names the replaced layers with their operators, the sha256 of the weights' file, and the
base: class, public config and digests of its weights.
"""

import json
import operator
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from linattn import digests
from linattn.surgery.student import Entry, Student

FORMAT = 1
CARD, WEIGHTS = "linattn.json", "linattn.safetensors"
BASE = {"class": str, "name": str, "config": dict, "config_digest": str, "weights": dict}


def write(
    folder: Path,
    layers: list[dict[str, Any]],
    tensors: Mapping[str, Tensor],
    base: Mapping[str, Any],
) -> None:
    """Write both files as drafts and rename them, so that no reader finds half a file."""
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights, card = folder / f".{WEIGHTS}.draft", folder / f".{CARD}.draft"
    try:
        save_file(copies, weights, metadata={"format": "pt"})
        content = {
            "format": FORMAT,
            "weights": {"file": WEIGHTS, "sha256": digests.of_file(weights)},
            "layers": layers,
            "base": base,
        }
        card.write_text(json.dumps(content, indent=2) + "\n")
        # safetensors writes 0600, which another user of the folder cannot read
        shutil.copymode(card, weights)
        os.replace(weights, folder / WEIGHTS)
        os.replace(card, folder / CARD)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error})") from error
    finally:
        weights.unlink(missing_ok=True)
        card.unlink(missing_ok=True)


def recognises(path: Path) -> bool:
    return (path / CARD).is_file()


def read(path: Path, options: Mapping[str, Any]) -> Student:
    """Read a folder that `write` wrote; its card holds all options."""
    if options and recognises(path):
        raise ValueError(
            f"{path} is a student of linattn's, which holds its options; leave out "
            f"{', '.join(options)}"
        )
    for name in (CARD, WEIGHTS):
        if not (path / name).is_file():
            raise ValueError(f"{path} holds no student: {name} is missing (linattn.save writes it)")
    card = _read_card(path / CARD)
    if digests.of_file(path / WEIGHTS) != card["weights"]["sha256"]:
        raise ValueError(
            f"{path / WEIGHTS} is damaged: not the file that {CARD} was written with; fetch it "
            "again"
        )
    return Student(path, _entries(card), read_weights(path / WEIGHTS), card["base"])


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
        _check(card)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or was not written by linattn.save ({error})"
        ) from error
    if card["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {card['format']}; this linattn reads {FORMAT}: use a newer one"
        )
    return card


def _check(card: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless the card has every key that is read."""
    if not isinstance(card["format"], int):
        raise ValueError(f"format {card['format']!r} is no number")
    for layer in card["layers"]:
        if not isinstance(layer["name"], str) or not isinstance(layer["options"], dict):
            raise ValueError(f"layer {layer!r}")
    _entries(card)
    _ = card["weights"]["sha256"]
    for key, expected in BASE.items():
        if not isinstance(card["base"][key], expected):
            raise ValueError(f"base {key} {card['base'][key]!r}")


def _entries(card: Mapping[str, Any]) -> list[Entry]:
    values = operator.itemgetter("name", "operator", "options", "initialise")
    return [Entry(*values(layer)) for layer in card["layers"]]
