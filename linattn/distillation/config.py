"""Define how a student is distilled: DistillConfig, and the recipe that identifies a checkpoint."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from linattn import digests
from linattn.conditions import Asked
from linattn.distillation import objectives
from linattn.distillation.objectives import Objective
from linattn.distillation.training import Settings
from linattn.teachers import Teacher

Trains = Literal["attention", "new", "all"]
NOT_IN_RECIPE = ("scratch", "log_every", "checkpoint_every")  # no result depends on these settings
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Data(Protocol):
    """Describe the part of `samples.Samples` that distillation uses."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Asked]:
        """Return latents (count, channels, height, width) and their prompts: labels (count,) or
        captions.
        """


@dataclass(frozen=True)
class DistillConfig:
    operator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Any = "all"
    initialise: str = "all"
    objective: str | Mapping[str, float | str] = "protocol"
    trains: Trains = "attention"
    layerwise_steps: int = 50
    steps: int = 100
    batch: int = 16
    layerwise_learning_rate: float = 8e-3
    learning_rate: float = 8e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 10
    weight_decay: float = 0.0
    ema: float = 0.9
    clip: float | None = 1.0
    label_drop: float = 0.1
    times: Literal["teacher", "uniform"] = "teacher"
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    # folder of the checkpoints; None keeps none, and a killed run starts from the beginning
    scratch: str | None = None
    log_every: int = 20
    checkpoint_every: int = 50

    def __post_init__(self):
        objectives.create(self.objective)
        choices_of = {
            "trains": get_args(Trains),
            "dtype": tuple(DTYPES),
            "times": ("teacher", "uniform"),
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for name in ("batch", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.steps, self.layerwise_steps) < 0:
            raise ValueError(
                f"steps are {self.layerwise_steps} and {self.steps}; neither may be negative"
            )

    @functools.cached_property
    def terms(self) -> Objective:
        return objectives.create(self.objective)

    def settings(self) -> Settings:
        return Settings(
            **{setting.name: getattr(self, setting.name) for setting in fields(Settings)}
        )

    def recipe(self, teacher: Teacher, samples: Data) -> dict[str, Any]:
        """Return everything the result depends on. A checkpoint of another recipe is refused."""
        settings = {
            name: value for name, value in asdict(self).items() if name not in NOT_IN_RECIPE
        }
        ends = torch.tensor([0, len(samples) - 1])
        return settings | {
            "objective": asdict(self.terms),
            "teacher": digests.of_values(teacher.model.state_dict().values()),
            "samples": [len(samples), digests.of_values(_tensors(samples.batch(ends)))],
        }


def _tensors(batch: tuple[Tensor, Asked]) -> Iterator[Tensor]:
    """Yield latents and prompts as tensors; captions become the bytes of their text."""
    for part in batch:
        if isinstance(part, Tensor):
            yield part
        else:
            yield torch.tensor(list("\n".join(part).encode()))


def of_params(student: Any, recipe: Any, seed: int) -> DistillConfig:
    """Build the config of a student of params.yaml from `params.Student` and its profile's
    `params.Distill`.

    Settings are matched by name.
    """
    names = [setting.name for setting in fields(DistillConfig)]
    settings = {name: getattr(recipe, name) for name in names if hasattr(recipe, name)}
    settings |= {
        name: getattr(student, name) for name in ("operator", "options", "layers", "initialise")
    }
    return DistillConfig(**settings, seed=seed)
