"""Hold every training setting with its default and its bounds; no other file repeats one.

- `params` reads the training settings of a profile by this class, `DistillConfig` extends it for
  one student, and the loop in training.py takes it as it is.
- A new option is one field here. It is then a key of params.yaml, an argument of DistillConfig and
  a line of the run file, and its default holds wherever nobody writes another value.
- The names of a registry are the choices of its field.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from linattn import reader
from linattn.distillation import objectives
from linattn.distillation.objectives import DISTILLING, Objective
from linattn.distillation.optimizers import OPTIMIZERS
from linattn.distillation.schedules import SCHEDULES
from linattn.reader import accepted_by, between, choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the models' forward
TIMES = ("teacher", "uniform")  # as the teacher's training drew them, or uniformly
TRAINS = ("attention", "new", "all")  # the replaced layers, only what they added, or every weight
STARTS = ("free", "linear_in_depth")  # of the weights that the operators added (depth.py)
UNTIL = ("end", "conflict")  # when the distilling terms end (conflict.py)
ENCODERS = ("stay", "leave")  # on the device, or on the CPU but for the prompts that are new
FASTEST = 1e38  # learning rate; float32 ends at 3e38


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Say how a student is trained, first layer by layer and then end to end."""

    layerwise_steps: int = between(0, default=50)  # on every layer's output, all layers at once
    steps: int = between(0, default=100)  # then on the whole model
    batch: int = between(1, default=16)  # pictures in one step
    layerwise_learning_rate: float = between(0, FASTEST, default=8e-3)  # of the layerwise steps
    learning_rate: float = between(0, FASTEST, default=8e-3)  # of the steps on the whole model
    optimizer: str = choice(OPTIMIZERS, default="muon")  # one of OPTIMIZERS
    schedule: str = choice(SCHEDULES, default="cosine")  # one of SCHEDULES, of the learning rate
    warmup: int = between(0, default=10)  # steps in which the learning rate rises
    weight_decay: float = between(0, default=0.0)  # as the optimizer applies it
    ema: float = between(0, 0.999999, default=0.9)  # decay of the average that is kept; 0: none
    clip: float | None = between(0, default=1.0)  # largest gradient norm
    label_drop: float = between(0, 1, default=0.1)  # share of prompts that are replaced by none
    # how the noise levels of a batch are drawn, of TIMES
    times: str = choice(TIMES, default="teacher")
    # the loss: a preset's name, weights by term, or an Objective
    objective: str | Mapping[str, float | str] | Objective = accepted_by(
        objectives.create, default="protocol"
    )
    # how long the distilling terms hold, of UNTIL: to the end, or while they agree with the task
    until: str = choice(UNTIL, default="end")
    conflict_every: int = between(1, default=200)  # steps between two looks at that
    # how the weights that the operators added begin, of STARTS
    start: str = choice(STARTS, default="free")
    trains: str = choice(TRAINS, default="attention")  # which weights are trained, of TRAINS
    dtype: str = choice(DTYPES, default="float32")  # of the models' forward, of DTYPES
    # pictures that a device computes at once; their gradients add up to the batch's; null: all
    micro: int | None = between(1, default=None)
    checkpointing: bool = False  # whether the backward computes every block again, to hold less
    encoders: str = choice(ENCODERS, default="stay")  # where they are meanwhile, of ENCODERS
    log_every: int = between(1, default=20)  # steps between two entries of the history
    checkpoint_every: int = between(1, default=50)  # steps between two checkpoints

    def __post_init__(self) -> None:
        reader.check(self)
        terms = objectives.create(self.objective)
        if self.until == "conflict" and not (terms.task and terms.distils):
            raise ValueError(
                "until is 'conflict', which compares the task with the distilling terms "
                f"{', '.join(DISTILLING)}, and the objective weighs {terms.weights}: give both "
                "sides a weight, or choose 'end'"
            )
