"""HPSv2: a folder a style, whose pictures a model of people's preferences marks.

- Prompts are lists of texts in JSON, a file a style: `anime.json`, `concept-art.json`,
  `paintings.json`, `photo.json`. A folder of them is read whole.
- The scorer takes `STYLE/NUMBER.jpg`; the number is the prompt's place in its list.
- It prints its scores and writes no file: keep what it prints (`... | tee scores.txt`).
"""

import json
import math
import re
from pathlib import Path

from torch import Tensor

from linattn.intervals import Result
from linattn.scorers.benchmark import Benchmark, Prompt, checked, save

QUALITY = 95  # of JPEG, the only format that the scorer takes
# model, style, mean, and deviation over groups of prompts, which the average of all styles lacks
LINE = re.compile(r"^(\S*) +(\S+) +(\S+) \t ?(\S*)$", re.MULTILINE)


def prompts(path: Path) -> list[Prompt]:
    """Read one style's list, or a folder of them."""
    styles = sorted(path.glob("*.json")) if path.is_dir() else [path]
    read_prompts: list[Prompt] = []
    for style in styles:
        read_prompts += _of_style(style)
    return checked(read_prompts, path)


def _of_style(path: Path) -> list[Prompt]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} is no list of texts, as HPSv2's styles are")
    return [Prompt(f"{path.stem}/{number:05}", text) for number, text in enumerate(texts)]


def files(prompt: Prompt, count: int) -> list[str]:
    """Return the path of a prompt's picture."""
    return [f"{prompt.key}.jpg"]


def place(folder: Path, prompt: Prompt, pictures: Tensor) -> None:
    """Write the picture of one prompt."""
    (path,) = files(prompt, len(pictures))
    save(pictures[0], folder / path, quality=QUALITY, subsampling=0)


def read(path: Path) -> dict[str, Result]:
    """Read what the scorer printed: the score of each style and their average."""
    lines = LINE.findall(path.read_text(encoding="utf-8-sig"))
    models = sorted({model for model, *_ in lines})
    if len(models) != 1:
        raise ValueError(
            f"{path} has scores of {len(models)} models ({', '.join(models) or 'none'}); keep what "
            "HPSv2 prints for one"
        )
    measures = {}
    for _, style, value, _ in lines:
        key = "hpsv2" if style == "Average" else f"hpsv2_{style}"
        if key in measures:
            raise ValueError(f"{path} has two scores of {style}: keep one run")
        measures[key] = {"value": _score(value, style, path), "low": None, "high": None, "n": None}
    return measures


def _score(value: str, style: str, path: Path) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100:
        raise ValueError(
            f"{path} has a score of {value} for {style}; HPSv2 prints up to 100. Old versions "
            "print nan for fewer than 800 prompts and scores a hundredfold: use one from v2.1 on"
        )
    return number


HPSV2 = Benchmark("hpsv2", 1, (1,), prompts, files, place, read)
