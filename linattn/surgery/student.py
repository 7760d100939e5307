"""Hold a saved student as its files describe it, before a model becomes that student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """Name one replaced layer and the operator that replaces its attention."""

    name: str
    operator: str
    options: dict[str, Any]
    initialise: str = "all"
    heads: int | None = None  # that the layer was trained with, where the file says so


@dataclass(frozen=True)
class Student:
    path: Path
    entries: list[Entry]
    tensors: dict[str, Tensor]  # by the names of the plain model and of its operators
    base: dict[str, Any] | None = None  # as identity.base describes it; released files name none
