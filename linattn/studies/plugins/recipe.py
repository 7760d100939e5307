"""How a plug-in is trained: its numbers, and the students' own loop (training.py), which takes its steps."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import Tensor, nn

from linattn import params
from linattn.distillation.training import History, Named, Settings, Stage, fit

EVERY = 50  # steps between two checkpoints


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int
    batch: int
    rate: float
    seed: int
    small: int = 0  # of the steps, the first ones, that take pictures of half the side: a quarter of the cost
    optimizer: Literal["muon", "adamw"] = "adamw"
    ema: float = 0.98  # a fiftieth of the steps or so
    rank: int | None = None  # of a LoRA
    encoder: "Recipe | None" = None  # of an IP-Adapter: what looks at its pictures, and
    words: "Recipe | None" = None  # the line from there to words

    @classmethod
    def of(cls, told: Mapping[str, Any], place: str) -> "Recipe":
        inner = {name: cls.of(each, f"{place}.{name}") for name, each in told.items() if isinstance(each, Mapping)}
        return params.read(cls, {**told, **inner}, place)

    def side(self, step: int, whole: int) -> int:
        """Of the pictures of a step, for a teacher of side `whole`."""
        return whole // 2 if step < self.small else whole


def learn(
    recipe: Recipe,
    model: nn.Module,
    parameters: Named,
    loss: Callable[[int], Tensor],
    scratch: Path,
    **about: Any,
) -> list[dict[str, Any]]:
    """Train `parameters` of `model` and nothing else; they end as their moving average. Rows of the curve.

    `loss` takes a step's number, from which all its randomness comes. `about` is what else the result depends on.
    """
    model.requires_grad_(False)
    for _, parameter in parameters:
        parameter.requires_grad_(True)
    device = parameters[0][1].device.type
    kept = {"log_every": 25, "checkpoint_every": EVERY}
    settings = Settings(batch=recipe.batch, optimizer=recipe.optimizer, warmup=20, ema=recipe.ema, **kept)
    history = History(settings.log_every)
    stage = Stage("plugin", recipe.steps, recipe.rate, lambda step: {"loss": loss(step)})
    told = {**asdict(recipe), **about}
    fit(stage, parameters, muon_matrices(model), settings, history, scratch, told, Accelerator(cpu=device == "cpu"))
    model.requires_grad_(False)
    return history.rows


def muon_matrices(model: nn.Module) -> set[str]:
    """Name the 2-D weights that Muon trains, where a recipe names Muon."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {f"{name}.weight" for name in linear}
