"""The pictures of one row as a lossless PNG, small enough for Git.

- A line for each set: what the row drew and, of a student, what it drew before distillation.
- Class labels stand in the PNG's text, since the report names its columns by them.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from linattn.report.figures import as_bytes

SETS = ("pictures", "undistilled")
TEXT = "linattn"  # the PNG's text chunk: {"sets": [..], "labels": [..]}


def write(drawn: Mapping[str, np.ndarray], path: Path, count: int) -> Path:
    """Write the first `count` pictures of each set, side by side, and their labels."""
    sets = [name for name in SETS if name in drawn]
    lines = [np.concatenate(list(as_bytes(drawn[name][:count])), axis=1) for name in sets]
    info = PngInfo()
    labels = [int(label) for label in drawn["labels"][:count]] if "labels" in drawn else []
    info.add_text(TEXT, json.dumps({"sets": sets, "labels": labels}))
    buffer = io.BytesIO()
    sheet = np.concatenate(lines)  # (sets · side, count · side, 3)
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True, pnginfo=info)
    path.write_bytes(buffer.getvalue())
    return path


def read(path: Path, remedy: str = "write it again") -> dict[str, np.ndarray]:
    """Return each set as bytes, (count, 3, side, side), and the labels where the sheet has them.

    `remedy` is what helps where the sheet is damaged, for the error.
    """
    try:
        with Image.open(path) as image:
            pixels, text = np.asarray(image.convert("RGB")), image.info.get(TEXT)
    except (OSError, SyntaxError) as error:  # Pillow's errors do not name the file
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from None
    if text is None:
        raise ValueError(f"{path} does not say which pictures it holds; {remedy}")
    try:
        return _cut(pixels, json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from None


def _cut(pixels: np.ndarray, contents: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Cut a sheet into its sets; its text names them and the labels."""
    if not contents["sets"]:
        raise ValueError("it names no set of pictures")
    lines = np.split(pixels, len(contents["sets"]))  # each (side, count · side, 3)
    drawn = {name: _pictures(line) for name, line in zip(contents["sets"], lines, strict=True)}
    if contents["labels"]:
        drawn["labels"] = np.array(contents["labels"], int)
    return drawn


def _pictures(line: np.ndarray) -> np.ndarray:
    """Cut a line into its square pictures."""
    side = line.shape[0]
    return line.reshape(side, -1, side, 3).transpose(1, 3, 0, 2)  # (count, 3, side, side)
