"""A plug-in's training: its settings, and the call of the loop that trains the students too
(training.py).
"""

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
    small: int = 0  # so many first steps use pictures of half the side, at a quarter of the cost
    optimizer: Literal["muon", "adamw"] = "adamw"
    ema: float = 0.98  # averages over about a fiftieth of the steps
    rank: int | None = None  # the LoRA's
    encoder: "Recipe | None" = None  # the IP-Adapter's image encoder
    # the IP-Adapter's projection from the image encoder to text states
    words: "Recipe | None" = None

    @classmethod
    def of(cls, entries: Mapping[str, Any], where: str) -> "Recipe":
        """Read a recipe and the recipes inside it; `where` names the entry in an error message."""
        mappings = {name: entry for name, entry in entries.items() if isinstance(entry, Mapping)}
        inner = {name: cls.of(entry, f"{where}.{name}") for name, entry in mappings.items()}
        return params.read(cls, {**entries, **inner}, where)

    def side(self, step: int, full: int) -> int:
        """Return the side of a step's pictures, for a teacher whose side is `full`."""
        return full // 2 if step < self.small else full


def learn(
    recipe: Recipe,
    model: nn.Module,
    parameters: Named,
    loss: Callable[[int], Tensor],
    scratch: Path,
    **about: Any,
) -> list[dict[str, Any]]:
    """Train `parameters` of `model` and nothing else, and return the rows of the curve.

    The parameters end as their moving average. `loss` takes a step's number, which seeds all its
    randomness. `about` names whatever else the result depends on: a checkpoint of another training
    is not resumed.
    """
    model.requires_grad_(False)
    for _, parameter in parameters:
        parameter.requires_grad_(True)
    device = parameters[0][1].device.type
    intervals = {"log_every": 25, "checkpoint_every": EVERY}
    settings = Settings(
        batch=recipe.batch, optimizer=recipe.optimizer, warmup=20, ema=recipe.ema, **intervals
    )
    history = History(settings.log_every)
    stage = Stage("plugin", recipe.steps, recipe.rate, lambda step: {"loss": loss(step)})
    inputs = {**asdict(recipe), **about}
    accelerator = Accelerator(cpu=device == "cpu")
    fit(stage, parameters, muon_matrices(model), settings, history, scratch, inputs, accelerator)
    model.requires_grad_(False)
    return history.rows


def muon_matrices(model: nn.Module) -> set[str]:
    """Name the 2-D weights that Muon trains, where a recipe names Muon."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {f"{name}.weight" for name in linear}
