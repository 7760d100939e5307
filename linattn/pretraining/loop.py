"""The training loop of every small teacher.

- Hidden matrices learn by Muon, the rest by AdamW; the average of the weights is what is kept.
- Killed at any moment, the same call goes on from its scratch folder and ends with the same
  weights.
- On a CPU the backward of PyTorch's fused attention takes 40 % of a step of small pictures; written
  out it takes 10 %.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linattn import checkpoint, seeds
from linattn.pretraining.kind import Data, Kind
from linattn.pretraining.recipe import Recipe, Stopwatch


def optimizers(kind: Kind, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and kind.is_hidden(name)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return {
        "muon": torch.optim.Muon(
            hidden, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0),
    }


def train(
    kind: Kind,
    vae: AutoencoderKL,
    recipe: Recipe,
    scratch: Path,
    device: str = "cpu",
    every: int = 250,
) -> nn.Module:
    """The averaged model."""
    torch.manual_seed(recipe.seed)
    model = kind.build(recipe).to(device)
    average = kind.build(recipe).to(device).requires_grad_(False).eval()
    average.load_state_dict(model.state_dict())
    parts = {"model": model, "average": average, **optimizers(kind, model)}
    for number, stage in enumerate(recipe.stages):
        _train_stage(
            number, kind, recipe, parts, kind.data(vae, recipe, stage.side, scratch), scratch, every
        )
    return average


def _train_stage(
    number: int,
    kind: Kind,
    recipe: Recipe,
    parts: Mapping[str, Any],
    data: Data,
    scratch: Path,
    every: int,
) -> None:
    stage, device = recipe.stages[number], next(parts["model"].parameters()).device
    settings = {"stages": [vars(each) for each in recipe.stages[: number + 1]], **recipe.settings}
    watch, total = Stopwatch(scratch / "seconds.json"), 0.0
    for step in checkpoint.Resumable(
        scratch / f"stage-{number}.safetensors", parts, stage.steps, settings, every
    ):
        dice = seeds.of_step(recipe.seed + 1 + number, step)
        given = {
            name: each.to(device)
            for name, each in kind.draw(recipe, data, stage.batch, dice).items()
        }
        with sdpa_kernel(attention_of(stage.side, device)):
            value = kind.loss(parts["model"], given)
        take(value, parts, stage.rate_at(step, recipe.warmup), recipe)
        total += value.item()
        if step % 50 == 49:
            seconds = watch.lap(f"stage {number}")
            where = f"stage {number} step {step + 1}/{stage.steps}"
            print(
                f"{where} loss {total / 50:.4f} {50 * stage.batch / seconds:.0f} pictures/s",
                flush=True,
            )
            total = 0.0


def attention_of(side: int, device: torch.device) -> list[SDPBackend]:
    """Measured on one thread, pictures/s fused and written out: 168 and 256 (UNet, 32 px), 75 and
    101 (FLUX, 32 px), 24 and 21 (FLUX, 64 px)."""
    small = device.type == "cpu" and side <= 32
    every = [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.MATH,
    ]
    return [SDPBackend.MATH] if small else every


def take(value: Tensor, parts: Mapping[str, Any], rate: float, recipe: Recipe) -> None:
    """One step of both optimisers and of the average."""
    steppers = (parts["muon"], parts["adamw"])
    for stepper in steppers:
        stepper.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(parts["model"].parameters(), recipe.clip)
    for stepper, times in zip(steppers, (recipe.muon, 1.0), strict=True):
        for group in stepper.param_groups:
            group["lr"] = rate * times
        stepper.step()
    update_average(parts["average"], parts["model"], recipe.ema)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
