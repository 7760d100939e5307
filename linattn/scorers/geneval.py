"""GenEval: a folder a prompt, whose metadata say what a detector should find on its pictures.

- Prompts are lines of JSON with a `prompt`, a `tag` and the objects to find
  (`evaluation_metadata.jsonl`). A folder's number is that of its line.
- The scorer takes `NUMBER/metadata.jsonl` and every `NUMBER/samples/*.png`. Its results are lines
  of JSON, one a picture, and its score is the mean over tags of the share of correct pictures.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linattn.intervals import Result, bootstrap, summary
from linattn.scorers.benchmark import Benchmark, Prompt, checked, save


def prompts(path: Path) -> list[Prompt]:
    """Read the benchmark's lines of JSON."""
    entries = _lines(path, ("prompt", "tag"))
    numbered = [
        Prompt(f"{number:05}", entry["prompt"], entry) for number, entry in enumerate(entries)
    ]
    return checked(numbered, path)


def _lines(path: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the JSON objects of a file, or raise a ValueError for a line that lacks a key."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}") from None
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(
                f"line {number} of {path} has no {' and no '.join(missing)}; GenEval's lines are "
                f"objects with {', '.join(keys)}"
            )
        _check_types(entry, f"line {number} of {path}")
        entries.append(entry)
    return entries


def _check_types(entry: dict[str, Any], line: str) -> None:
    """Refuse what would be counted wrongly: the text "false" is true to Python."""
    types = {"tag": str, "prompt": str, "correct": bool}
    for key, expected in types.items():
        if key in entry and not isinstance(entry[key], expected):
            raise ValueError(f"{line}: {key} is {entry[key]!r}, no {expected.__name__}")


def files(prompt: Prompt, count: int) -> list[str]:
    """Return the paths of a prompt's files."""
    pictures = [f"{prompt.key}/samples/{number:04}.png" for number in range(count)]
    return [f"{prompt.key}/metadata.jsonl", *pictures]


def place(folder: Path, prompt: Prompt, pictures: Tensor) -> None:
    """Write the metadata and the pictures of one prompt."""
    metadata, *paths = (folder / file for file in files(prompt, len(pictures)))
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(json.dumps(prompt.metadata), encoding="utf-8")
    for picture, path in zip(pictures, paths, strict=True):
        save(picture, path)


def read(path: Path) -> dict[str, Result]:
    """Read `results.jsonl`: the score, and the share of correct pictures of each tag.

    Intervals resample prompts, because pictures of one prompt are right and wrong together.
    """
    entries = _lines(path, ("tag", "prompt", "correct"))
    if not entries:
        raise ValueError(f"{path} has no results; GenEval writes a line a picture")
    drawn = Counter(entry["filename"] for entry in entries if "filename" in entry)
    if twice := [name for name, count in drawn.items() if count > 1]:
        raise ValueError(f"{path} has two results of {twice[0]}: keep one run")
    _check_whole(path, [Path(name) for name in drawn])
    tags = list(dict.fromkeys(entry["tag"] for entry in entries))
    counts = _counts(entries, tags)  # (prompts, tags, right and all)
    measures = {}
    for number, tag in enumerate(tags):
        right, every = counts[counts[:, number, 1] > 0, number].unbind(1)
        measures[f"geneval_{tag}"] = summary(right / every)
    value = _score(counts[None]).item()
    low, high = bootstrap(counts, statistic=_score)
    return {"geneval": {"value": value, "low": low, "high": high, "n": len(counts)}, **measures}


def _check_whole(path: Path, drawn: list[Path]) -> None:
    """Refuse results that lack a picture beside those that they name, as a file that was cut does.

    Where the pictures do not lie here any more, nobody knows how many there were.
    """
    folders = {picture.parents[2] for picture in drawn if len(picture.parents) > 2}
    there = {picture for folder in folders for picture in folder.glob("*/samples/*.png")}
    if there & set(drawn) and (missing := sorted(there - set(drawn))):
        raise ValueError(
            f"{path} has no result of {missing[0]} and {len(missing) - 1} others that lie there: "
            "run the scorer to its end"
        )


def _counts(entries: list[dict[str, Any]], tags: list[str]) -> Tensor:
    """Count right and all pictures by prompt and tag."""
    places = {key: number for number, key in enumerate(dict.fromkeys(map(_identity, entries)))}
    counts = torch.zeros(len(places), len(tags), 2, dtype=torch.float64)
    for entry in entries:
        cell = counts[places[_identity(entry)], tags.index(entry["tag"])]
        cell += torch.tensor([float(bool(entry["correct"])), 1.0])
    return counts


def _identity(entry: dict[str, Any]) -> tuple[str, str]:
    """Return what makes a prompt another one: its metadata, as the scorer's own summary has it."""
    return entry["tag"], str(entry.get("metadata", entry["prompt"]))


def _score(counts: Tensor) -> Tensor:
    """Average the tags' shares, (resamples, prompts, tags, 2) -> (resamples,).

    A resample that missed a tag averages the others.
    """
    totals = counts.sum(1)
    return (totals[..., 0] / totals[..., 1]).nanmean(1)


GENEVAL = Benchmark("geneval", 4, (), prompts, files, place, read)
