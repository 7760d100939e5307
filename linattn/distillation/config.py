"""Define DistillConfig: one student, how it is trained, and the recipe that identifies a run."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from linattn import digests
from linattn.attention import OPERATORS, POLICIES
from linattn.conditions import Prompts
from linattn.distillation import objectives
from linattn.distillation.objectives import Objective
from linattn.distillation.settings import Settings
from linattn.reader import choice
from linattn.teachers import Teacher

# No result depends on these settings; on the second three it does by rounding alone.
NOT_IN_RECIPE = (
    *("scratch", "log_every", "checkpoint_every"),
    *("micro", "checkpointing", "encoders"),
)


class Data(Protocol):
    """Describe the part of `samples.Samples` that distillation uses."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Prompts]:
        """Return latents (count, channels, height, width) and prompts: labels or captions."""
        ...


@dataclass(frozen=True)
class DistillConfig(Settings):
    """Describe one student with its seed; the settings of its training are inherited."""

    operator: str = choice(OPERATORS)  # one of OPERATORS
    options: Mapping[str, Any] = field(default_factory=dict)  # values of the operator's options
    layers: Any = "all"  # which layers are replaced, as in `linearize`
    initialise: str = choice(POLICIES, default="all")  # one of POLICIES
    seed: int = 0  # of the operator's new weights, the batches, their times and noise
    compile: bool = False  # whether the blocks of teacher and student are compiled
    # folder of the checkpoints; None keeps none, and a killed run starts from the beginning
    scratch: str | None = None

    @functools.cached_property
    def terms(self) -> Objective:
        return objectives.create(self.objective)

    def recipe(self, teacher: Teacher, samples: Data) -> dict[str, Any]:
        """Return everything the result depends on. A checkpoint of another recipe is refused."""
        settings = asdict(self)
        for name in NOT_IN_RECIPE:
            del settings[name]
        ends = torch.tensor([0, len(samples) - 1])
        return settings | {
            "objective": asdict(self.terms),
            "teacher": digests.of_values(teacher.model.state_dict().values()),
            "samples": [len(samples), digests.of_values(_tensors(samples.batch(ends)))],
        }


def of_params(student: Any, settings: Settings, seed: int) -> DistillConfig:
    """Build the config of a student of params.yaml, `student`, from its training settings."""
    training = {setting.name: getattr(settings, setting.name) for setting in fields(Settings)}
    return DistillConfig(
        operator=student.operator,
        options=student.options,
        layers=student.layers,
        initialise=student.initialise,
        seed=seed,
        **training,
    )


def _tensors(batch: tuple[Tensor, Prompts]) -> Iterator[Tensor]:
    """Yield latents and prompts as tensors; captions become the bytes of their text."""
    for values in batch:
        if isinstance(values, Tensor):
            yield values
        else:
            yield torch.tensor(list("\n".join(values).encode()))
