"""What a benchmark is: its prompts, where its scorer looks for pictures, what its scorer writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from linattn import files
from linattn.intervals import Result


@dataclass(frozen=True)
class Prompt:
    """Hold one prompt of a benchmark."""

    key: str  # names its pictures, unlike those of any other prompt
    text: str  # what a model is asked to draw
    # what the scorer wants to find beside the pictures
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Say how one benchmark is asked, laid out and read."""

    name: str  # by which commands and measures call it
    pictures: int  # of each prompt, as its authors draw them
    counts: Sequence[int]  # the numbers of pictures that its scorer can take; none: any
    prompts: Callable[[Path], list[Prompt]]  # reads the benchmark's own file
    files: Callable[[Prompt, int], list[str]]  # the paths of a prompt's files, below the folder
    # writes the pictures (count, 3, height, width) of a prompt, in 8 bits, below a folder
    place: Callable[[Path, Prompt, Tensor], None]
    read: Callable[[Path], dict[str, Result]]  # reads what its scorer wrote


def checked(prompts: Sequence[Prompt], path: Path) -> list[Prompt]:
    """Return the prompts, or raise a ValueError for none, an empty text or a key twice."""
    if not prompts:
        raise ValueError(f"no prompts in {path}; pass the benchmark's own file")
    keys: set[str] = set()
    for prompt in prompts:
        if not prompt.text.strip():
            raise ValueError(f"prompt {prompt.key} in {path} has no text")
        if prompt.key in keys:
            raise ValueError(f"{path} names {prompt.key} twice, and pictures need a name each")
        keys.add(prompt.key)
    return list(prompts)


def save(picture: Tensor, path: Path, **options: Any) -> None:
    """Save a picture (3, height, width) of 8 bits, whole or not at all.

    Args:
        picture: the picture.
        path: a file whose ending names the format; missing folders are made.
        options: those of Pillow for the format.
    """
    form = Image.registered_extensions()[path.suffix]
    with files.whole(path) as draft:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(draft, form, **options)
