"""Define what a plug-in is mounted on: the teacher, with softmax or with a student's layers."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import linattn
from linattn import surgery

SOFTMAX = "softmax"


@dataclass(frozen=True)
class Body:
    name: str
    folder: Path | None = None  # the student's folder; None is the teacher with softmax
    # False converts as the student was converted, without its trained weights
    distilled: bool = True

    def onto(self, pipe: DiffusionPipeline, fine_tuned: bool = False) -> None:
        """Put the student's layers into `pipe`, in place.

        A fine-tune is not the student's base: `linattn.load` accepts it only with strict=False.
        """
        if self.folder is None:
            return
        if self.distilled:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*the same architecture, trained otherwise"
                )
                linattn.load(pipe, self.folder, strict=not fine_tuned)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an operator may add randomly initialised weights
            linattn.linearize(pipe, **self.operator)

    @property
    def operator(self) -> dict[str, Any]:
        """Return the arguments of `linearize`: all layers of such a student have one operator."""
        if self.folder is None:
            raise ValueError(f"{self.name} is the teacher, which has no operator of a student")
        first = json.loads((self.folder / surgery.CARD).read_text())["layers"][0]
        return {"name": first["operator"], **first["options"]}

    @property
    def raw(self) -> "Body":
        """Return the same student converted, without distillation."""
        return Body(f"{self.name}, not distilled", self.folder, distilled=False)
