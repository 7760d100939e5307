"""DPG-Bench: long prompts, and questions that a model answers about a grid of four pictures.

- Prompts are the benchmark's table (`dpg_bench.csv`, of which item_id and text are read, a row a
  question) or its folder of texts (`prompts/ID.txt`).
- The scorer takes `ID.png`, two by two pictures, and is told the side of one.
- Its results are a text: a line a grid, then the scores of categories and of all, in percent.
"""

import csv
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from linattn.intervals import Result, summary
from linattn.scorers.benchmark import Benchmark, Prompt, checked, save

COLUMNS = ("item_id", "text")
TOTAL = re.compile(r"^DPG-Bench score: (\S+)$", re.MULTILINE)
CATEGORY = re.compile(r"^\t(.+): (\S+)$", re.MULTILINE)


def prompts(path: Path) -> list[Prompt]:
    """Read the benchmark's table, or its folder of texts."""
    texts = _of_folder(path) if path.is_dir() else _of_table(path)
    for key in texts:
        # the scorer takes what stands before the first dot of a file's name
        if not key or set(key) & {"/", "\\", "."}:
            raise ValueError(
                f"{path} has the item_id {key!r}, and an id with a dot or a slash names no picture"
            )
    return checked([Prompt(key, text) for key, text in texts.items()], path)


def _of_folder(path: Path) -> dict[str, str]:
    return {
        file.stem: file.read_text(encoding="utf-8-sig").strip()
        for file in sorted(path.glob("*.txt"))
    }


def _of_table(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {' and no '.join(missing)}; it has "
                f"{', '.join(table.fieldnames or ()) or 'none'}"
            )
        for question in table:
            key, text = (question[column] or "" for column in COLUMNS)
            if texts.setdefault(key, text) != text:
                raise ValueError(f"{path} has two texts for item_id {key}")
    return texts


def files(prompt: Prompt, count: int) -> list[str]:
    """Return the path of a prompt's grid."""
    return [f"{prompt.key}.png"]


def place(folder: Path, prompt: Prompt, pictures: Tensor) -> None:
    """Write one picture, or four in a grid: the scorer cuts the upper two first."""
    (path,) = files(prompt, len(pictures))
    columns = math.isqrt(len(pictures))
    lines = [torch.cat(list(line), 2) for line in pictures.split(columns)]
    save(torch.cat(lines, 1), folder / path)


def read(path: Path) -> dict[str, Result]:
    """Read the scorer's text: the score and those of the categories, in percent."""
    text = path.read_text(encoding="utf-8-sig")
    totals = TOTAL.findall(text)
    if len(totals) != 1:
        raise ValueError(
            f"{path} has {len(totals)} lines 'DPG-Bench score: ...', and one finished run has 1; "
            "pass the file that ends in _results.txt"
        )
    overall = summary(100 * torch.tensor(_averages(text, path), dtype=torch.float64))
    total = _percent(totals[0], path)
    if not math.isclose(overall["value"], total, abs_tol=1e-6):
        raise ValueError(
            f"{path} says a score of {total}, and its lines average {overall['value']}: it holds "
            "lines of another run"
        )
    measures = {"dpg": overall}
    for name, value in CATEGORY.findall(text):
        key = "dpg_" + re.sub(r"\W+", "_", name)
        measures[key] = {"value": _percent(value, path), "low": None, "high": None, "n": None}
    return measures


def _averages(text: str, path: Path) -> list[float]:
    """Return the average of each grid, the last number of its line."""
    grids = [line for line in text.splitlines() if re.search(r"\.\w+, [\d., e-]+$", line)]
    if not grids:
        raise ValueError(f"{path} has no line of a picture, so its score is of none")
    return [float(line.rpartition(", ")[2]) for line in grids]


def _percent(value: str, path: Path) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100:
        raise ValueError(f"{path} has a score of {value}, which is no percentage")
    return number


DPG = Benchmark("dpg", 4, (1, 4), prompts, files, place, read)
