"""Strips of pictures, all drawn from the same noise and with the same prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from linattn.report import figures
from linattn.report.data import Data
from linattn.report.picture import Picture


def strips(data: Data, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return a strip of pictures for each name, all from the same noise and prompts."""
    entries: list[dict[str, Any]] = []
    for name in names or ("teacher", *data.students):
        drawn = data.pictures.get(name)
        if drawn is not None:
            picture = strip(data, name, drawn["pictures"], "drawn by")
            entries.append({"name": name, "picture": picture, "note": ""})
        elif name in data.failures:
            entries.append({"name": name, "picture": None, "note": "failed"})
    return entries


def strip(data: Data, name: str, pictures: np.ndarray, words: str) -> Picture:
    """Draw pictures side by side, with an alt text that names their prompts."""
    frames = pictures[: data.show]
    separator = "; " if data.captions else ", "
    prompts = separator.join(column_names(data)[: len(frames)])
    shown = f"{len(frames)} pictures {words} {name}"
    return figures.strip(frames, f"{shown}; asked for, from left to right: {prompts}.")


def column_names(data: Data) -> list[str]:
    """Return the prompts: captions, or the names of the classes.

    Args:
        data: the data of one teacher.
    """
    if data.captions or data.classes:
        return list((data.captions or data.classes)[: data.show])
    for entry in data.pictures.values():
        if "labels" in entry:
            return [_label(data, int(label)) for label in entry["labels"][: data.show]]
    return []


def _label(data: Data, number: int) -> str:
    """Return the name of a class; one that the small world does not have is its number."""
    return data.labels[number] if 0 <= number < len(data.labels) else f"class {number}"


def detail(data: Data, name: str) -> list[dict[str, Any]]:
    """Return strips of the teacher, the student, their difference, and the undistilled student."""
    teacher, student = data.pictures.get("teacher"), data.pictures.get(name)
    if student is None:
        return []
    shown = {name: strip(data, name, student["pictures"], "drawn by")}
    if teacher is not None:
        # a committed row has fewer pictures than one that was drawn here
        count = min(data.show, len(teacher["pictures"]), len(student["pictures"]))
        change = figures.change(teacher["pictures"][:count], student["pictures"][:count])
        shown = {
            "teacher": strip(data, "the teacher", teacher["pictures"], "drawn by"),
            **shown,
            "difference": strip(data, name, change, "of where the teacher differs from"),
        }
    if "undistilled" in student:
        before = strip(data, f"{name} before distillation", student["undistilled"], "drawn by")
        shown["not distilled"] = before
    return [{"name": title, "picture": picture} for title, picture in shown.items()]
