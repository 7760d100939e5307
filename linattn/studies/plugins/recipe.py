"""Define how a plug-in is trained, and train it by the loop that trains the students too."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from linattn.distillation.history import History
from linattn.distillation.optimizers import Named
from linattn.distillation.settings import Settings
from linattn.distillation.training import Stage, fit
from linattn.reader import between, like

WARMUP = 20
LOG_EVERY = 25
EVERY = 50  # steps between two checkpoints


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hold what the recipes of plug-ins differ in; all else is as `Settings` has it."""

    steps: int = like(Settings, "steps")
    batch: int = like(Settings, "batch")
    rate: float = like(Settings, "learning_rate")
    seed: int = between(0)
    # so many first steps use pictures of half the side, at a quarter of the cost
    small: int = between(0, default=0)
    optimizer: str = like(Settings, "optimizer", default="adamw")
    # averages over about a fiftieth of the steps
    ema: float = like(Settings, "ema", default=0.98)
    rank: int | None = between(1, default=None)  # the LoRA's
    encoder: "Recipe | None" = None  # the IP-Adapter's image encoder
    # the IP-Adapter's projection from the image encoder to text states
    words: "Recipe | None" = None

    @property
    def settings(self) -> Settings:
        """The settings of the training loop."""
        return Settings(
            batch=self.batch,
            optimizer=self.optimizer,
            warmup=WARMUP,
            ema=self.ema,
            log_every=LOG_EVERY,
            checkpoint_every=EVERY,
        )

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
    settings = recipe.settings
    history = History(settings.log_every)

    def terms(step: int) -> dict[str, Tensor]:
        """Compute a step's loss, and leave its gradients in the parameters."""
        value = loss(step)
        value.backward()
        return {"loss": value}

    stage = Stage("plugin", recipe.steps, recipe.rate, terms)
    identity = {**asdict(recipe), **about}
    accelerator = Accelerator(cpu=parameters[0][1].device.type == "cpu")
    fit(stage, parameters, muon_matrices(model), settings, history, scratch, identity, accelerator)
    model.requires_grad_(False)
    return history.rows


def muon_matrices(model: nn.Module) -> set[str]:
    """Name the 2-D weights that Muon trains, where a recipe names Muon."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {f"{name}.weight" for name in linear}
