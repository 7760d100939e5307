"""Strips of pictures: everyone's from the same noise, asked for the same thing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from linattn.report import figures
from linattn.report.data import Data
from linattn.report.picture import Picture


def strips(data: Data, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A strip of pictures a name, all from the same noise and classes."""
    shown = []
    for name in names or ("teacher", *data.students):
        entry = data.pictures.get(name)
        if entry is None:
            if name in data.failures:
                shown.append({"name": name, "picture": None, "note": "failed"})
            continue
        shown.append({"name": name, "picture": strip(data, name, entry["pictures"], "drawn by"), "note": ""})
    return shown


def strip(data: Data, name: str, pictures: np.ndarray, words: str) -> Picture:
    frames = pictures[: data.show]
    asked = (", ", "; ")[bool(data.captions)].join(column_names(data)[: len(frames)])
    return figures.strip(frames, f"{len(frames)} pictures {words} {name}; asked for, from left to right: {asked}.")


def column_names(data: Data) -> list[str]:
    """What was asked for: captions, or the classes' names."""
    if data.captions:
        return list(data.captions[: data.show])
    for entry in data.pictures.values():
        if "labels" in entry:
            return [data.labels[int(label)] for label in entry["labels"][: data.show]]
    return []


def detail(data: Data, name: str) -> list[dict[str, Any]]:
    """The teacher's pictures, the student's, where they differ, and the student's before distillation."""
    teacher, student = data.pictures.get("teacher"), data.pictures.get(name)
    if student is None:
        return []
    rows = []
    if teacher is not None:
        rows.append({"name": "teacher", "picture": strip(data, "the teacher", teacher["pictures"], "drawn by")})
    rows.append({"name": name, "picture": strip(data, name, student["pictures"], "drawn by")})
    if teacher is not None:
        gap = figures.change(teacher["pictures"][: data.show], student["pictures"][: data.show])
        rows.append({"name": "difference", "picture": strip(data, name, gap, "of where the teacher differs from")})
    if "undistilled" in student:
        before = strip(data, f"{name} before distillation", student["undistilled"], "drawn by")
        rows.append({"name": "not distilled", "picture": before})
    return rows
