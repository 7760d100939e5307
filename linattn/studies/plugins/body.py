"""What a plug-in is mounted on: the teacher as it is, or with a student's layers in the place of its self-attention."""

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
    folder: Path | None = None  # a student's; None: softmax
    distilled: bool = True  # or converted as the student was, with the weights that are there

    def onto(self, pipe: DiffusionPipeline, fine_tuned: bool = False) -> None:
        """In place. A fine-tune is not the student's base, which `linattn.load` takes only if it is told so."""
        if self.folder is None:
            return
        if self.distilled:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*the same architecture, trained otherwise")
                linattn.load(pipe, self.folder, strict=not fine_tuned)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what an operator adds is drawn
            linattn.linearize(pipe, **self.operator)

    @property
    def operator(self) -> dict[str, Any]:
        """As `linearize` takes it; a student here has one operator in all its layers."""
        first = json.loads((self.folder / surgery.CARD).read_text())["layers"][0]
        return {"name": first["operator"], **first["options"]}

    @property
    def raw(self) -> "Body":
        return Body(f"{self.name}, not distilled", self.folder, distilled=False)
