"""Say how a student is distilled: DistillConfig, and the recipe that a checkpoint is known by."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from linattn.conditions import Asked
from linattn.distillation import objectives
from linattn.distillation.objectives import Objective
from linattn.distillation.training import Settings
from linattn.teachers import Teacher

Trains = Literal["attention", "new", "all"]
UNSEEN = ("scratch", "log_every", "checkpoint_every")  # settings that no result depends on
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Data(Protocol):
    """What `samples.Samples` is, as far as a student is concerned."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Asked]:
        """Latents (count, channels, height, width) and what was asked for, labels (count,) or captions."""


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
    scratch: str | None = None  # None: nothing is kept, a killed run begins again
    log_every: int = 20
    checkpoint_every: int = 50

    def __post_init__(self):
        objectives.create(self.objective)
        choices_of = {"trains": get_args(Trains), "dtype": tuple(DTYPES), "times": ("teacher", "uniform")}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for name in ("batch", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.steps, self.layerwise_steps) < 0:
            raise ValueError(f"steps are {self.layerwise_steps} and {self.steps}; neither may be negative")

    @functools.cached_property
    def terms(self) -> Objective:
        return objectives.create(self.objective)

    def settings(self) -> Settings:
        return Settings(**{each.name: getattr(self, each.name) for each in fields(Settings)})

    def recipe(self, teacher: Teacher, samples: Data) -> dict[str, Any]:
        """Everything the result depends on: a checkpoint of another recipe is refused."""
        settings = {name: value for name, value in asdict(self).items() if name not in UNSEEN}
        ends = torch.tensor([0, len(samples) - 1])
        return settings | {
            "objective": asdict(self.terms),
            "teacher": fingerprint(teacher.model.state_dict().values()),
            "samples": [len(samples), fingerprint(_tensors(samples.batch(ends)))],
        }


def _tensors(batch: tuple[Tensor, Asked]) -> Iterator[Tensor]:
    """Captions as the numbers of their letters."""
    for each in batch:
        words = b"" if isinstance(each, Tensor) else "\n".join(each).encode()
        yield each if isinstance(each, Tensor) else torch.tensor(list(words))


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Names a set of tensors by shapes and some of their values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 64)].cpu().double()
        digest.update(repr((tuple(tensor.shape), some.tolist())).encode())
    return digest.hexdigest()[:16]


def of_params(student: Any, recipe: Any, seed: int) -> DistillConfig:
    """A student of params.yaml and the settings of its profile (`params.Student`, `params.Distill`), name by name."""
    told = {each.name: getattr(recipe, each.name) for each in fields(DistillConfig) if hasattr(recipe, each.name)}
    told |= {name: getattr(student, name) for name in ("operator", "options", "layers", "initialise")}
    return DistillConfig(**told, seed=seed)
