"""Write and read a student's folder: `linattn.json` and the weights that it describes.

The card names the replaced layers with their operators, the sha256 of the weights' file, the base
(class, public config and digests of its weights), and the digest of all that.
"""

import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from linattn import digests, files
from linattn.attention import POLICIES
from linattn.finite import finite
from linattn.names import known, shortened
from linattn.surgery.student import Entry, Student

FORMAT = 2
UNSEALED = 1  # the format of cards without a digest of their own
CARD, WEIGHTS = "linattn.json", "linattn.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
BASE = {"class": str, "name": str, "config": dict, "config_digest": str, "weights": dict}


def write(
    folder: Path,
    layers: list[dict[str, Any]],
    tensors: Mapping[str, Tensor],
    base: Mapping[str, Any],
) -> None:
    """Write both files whole; what is not finite is not written."""
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    for name, tensor in copies.items():
        finite(tensor, f"weights of {name}", "the training diverged, and nothing was written")
    try:
        with files.whole(folder / CARD) as card, files.whole(folder / WEIGHTS) as weights:
            save_file(copies, weights, metadata={"format": "pt"})
            content: dict[str, Any] = {
                "format": FORMAT,
                "weights": {"file": WEIGHTS, "sha256": digests.of_file(weights)},
                "layers": layers,
                "base": base,
            }
            content["digest"] = _digest(content)
            card.write_text(json.dumps(content, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error})") from error


def require_place(folder: str | Path, size: int) -> None:
    """Raise OSError unless so many bytes can be written into a folder, made or not yet made.

    Args:
        folder: a student's.
        size: of its files in bytes.
    """
    try:
        files.require_room(files.path_of(folder, "folder"), size, (CARD, WEIGHTS))
    except OSError as error:
        raise OSError(
            f"the student could not be saved in {folder} ({error}): name another folder"
        ) from error


def _digest(card: Mapping[str, Any]) -> str:
    """Return the digest of a card without its own."""
    return digests.of_settings({key: value for key, value in card.items() if key != "digest"})


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
            raise ValueError(
                f"{path} holds no student: {name} is missing (linattn.save writes it)"
                f"{pickled(path)}"
            )
    card = _read_card(path / CARD)
    if digests.of_file(path / WEIGHTS) != card["weights"]["sha256"]:
        raise ValueError(
            f"{path / WEIGHTS} is damaged: not the file that {CARD} was written with; fetch it "
            "again"
        )
    return Student(path, _entries(card), read_weights(path / WEIGHTS), card["base"])


def pickled(path: Path) -> str:
    """Name the pickles of a folder for an error, and what to do; nothing where it has none."""
    names = sorted(file.name for file in path.glob("*") if file.suffix in PICKLES)
    if not names:
        return ""
    return (
        f"; {shortened(names)} is a pickle, which can run code and is not opened: write its "
        "tensors beside it, safetensors.torch.save_file(torch.load(file, weights_only=True), "
        "'diffusion_pytorch_model.safetensors')"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights, which are finite numbers of a floating-point type."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    if others := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        dtype = tensors[others[0]].dtype
        raise ValueError(
            f"{path} is damaged: {shortened(others)} is {dtype} and no weight; fetch it again"
        )
    try:
        for name, tensor in tensors.items():
            finite(tensor, f"weights of {name}", "fetch it again, or train it again")
    except ArithmeticError as error:
        raise ValueError(f"{path}: {error}") from error
    return tensors


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text())
        version = card["format"]
        is_newer = isinstance(version, int) and version > FORMAT
        if not is_newer:
            _check(card)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or was not written by linattn.save ({error}); fetch it again"
        ) from error
    if is_newer:
        raise ValueError(
            f"{path} has format {version}; this linattn reads {FORMAT}: use a newer one"
        )
    return card


def _check(card: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless the card has every key that is read."""
    if card["format"] not in (UNSEALED, FORMAT) or isinstance(card["format"], bool):
        raise ValueError(f"format {card['format']!r} is none of {UNSEALED} and {FORMAT}")
    if card["format"] == FORMAT and card["digest"] != _digest(card):
        raise ValueError("its digest is another: it was edited, or is not whole; save it again")
    if not card["layers"]:
        raise ValueError("it replaces no layer")
    for layer in card["layers"]:
        if not isinstance(layer["name"], str) or not isinstance(layer["options"], dict):
            raise ValueError(f"layer {layer!r}")
        known(layer["initialise"], POLICIES, "initialise")
        if not isinstance(layer["operator"], str):
            raise ValueError(f"layer {layer!r}")
    names = [entry.name for entry in _entries(card)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it names {twice[0]} twice")
    _ = card["weights"]["sha256"]
    for key, expected in BASE.items():
        if not isinstance(card["base"][key], expected):
            raise ValueError(f"base {key} {card['base'][key]!r}")


def _entries(card: Mapping[str, Any]) -> list[Entry]:
    values = operator.itemgetter("name", "operator", "options", "initialise")
    return [Entry(*values(layer)) for layer in card["layers"]]
