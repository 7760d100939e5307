"""Read the card of a pipeline: card.json beside model_index.json says how it is sampled.

- Only what a draw depends on is held to a type. Notes on the training may be anything.
- A key of neither kind is refused: a misspelt `guidence` would be drawn without, in silence.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linattn import project
from linattn.names import short
from linattn.reader import between, check_keys, keys_of, mapping, read, typed

FILE = "card.json"
# What a card says of how its pipeline was trained.
NOTES = (
    "autoencoder_psnr",
    "channels",
    "data",
    "facts",
    "factor",
    "parameters",
    "sampler",
    "seconds",
    "training",
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Say what the entries are that a draw depends on; a card may lack any of them."""

    steps: int = between(1, default=1)
    guidance: float = between(1, default=1.0)
    side: int = between(1, default=1)  # of its pictures in px
    text_length: int = between(1, default=1)  # tokens of a prompt
    labels: tuple[str, ...] = typed(empty=True, default=())  # names of the classes, in order
    classes: int = between(1, default=1)  # how many, where they have no names
    gate: dict[str, Any] = field(default_factory=dict)  # marks of its pictures by the judge


def checked_card(entries: Any, path: str) -> dict[str, Any]:
    """Return a card, or raise ValueError for a wrong key or value.

    Args:
        entries: the entries of the card, or some of them.
        path: where they stand, for the error.
    """
    content = mapping(entries, path)
    settings = keys_of(Card)
    check_keys(content, (), (*settings, *NOTES), path)
    read(Card, {key: value for key, value in content.items() if key in settings}, path)
    return dict(content)


def card_in(folder: str | Path) -> dict[str, Any]:
    """Return the card in a pipeline's folder, or nothing where it has none.

    Args:
        folder: a pipeline's folder, or any other text, such as a hub id.
    """
    path = os.path.join(folder, FILE)
    if not os.path.lexists(path):
        return {}
    if not os.path.isfile(path):
        raise ValueError(f"{short(path)} is no file; remove it, or write the card there")
    return checked_card(project.read_json(Path(path)), path)
