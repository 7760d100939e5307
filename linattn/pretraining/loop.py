"""Run the training loop of every small teacher.

- Hidden matrices learn by Muon, the others by AdamW; the average of the weights is kept.
- Killed at any moment, the same call goes on from its scratch folder and ends with the same
  weights.
- On a CPU the backward of PyTorch's fused attention takes 40 % of a step of small pictures; the
  unfused one takes 10 %.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linattn import checkpoint, seeds
from linattn.pretraining.backbone import Backbone, Data
from linattn.pretraining.recipe import Recipe, Stopwatch

LOG_EVERY = 50
ALL_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
State = Mapping[str, Any]  # model, average and optimizers: all that a step changes


def optimizers(backbone: Backbone[Any], model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Create Muon for the hidden matrices, and AdamW for all other parameters."""
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and backbone.is_hidden(name):
            hidden.append(parameter)
        elif parameter.requires_grad:
            others.append(parameter)
    return {
        "muon": torch.optim.Muon(
            hidden, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0),
    }


def train(
    backbone: Backbone[Any],
    vae: AutoencoderKL,
    recipe: Recipe,
    scratch: Path,
    device: str = "cpu",
    every: int = 250,
) -> nn.Module:
    """Train in all stages and return the averaged model; `every` steps write a checkpoint."""
    torch.manual_seed(recipe.seed)
    model = backbone.build(recipe).to(device)
    average = backbone.build(recipe).to(device).requires_grad_(False).eval()
    average.load_state_dict(model.state_dict())
    state = {"model": model, "average": average, **optimizers(backbone, model)}
    for number, stage in enumerate(recipe.stages):
        data = backbone.data(vae, recipe, stage.side, scratch)
        _train_stage(number, backbone, recipe, state, data, scratch, every)
    return average


def _train_stage(
    number: int,
    backbone: Backbone[Any],
    recipe: Recipe,
    state: State,
    data: Data,
    scratch: Path,
    every: int,
) -> None:
    stage, device = recipe.stages[number], next(state["model"].parameters()).device
    stages = [vars(trained) for trained in recipe.stages[: number + 1]]
    settings = {"stages": stages, **recipe.settings}
    path = scratch / f"stage-{number}.safetensors"
    stopwatch, total = Stopwatch(scratch / "seconds.json"), 0.0
    for step in checkpoint.Resumable(path, state, stage.steps, settings, every):
        rng = seeds.of_step(recipe.seed + 1 + number, step)
        drawn = backbone.draw(recipe, data, stage.batch, rng)
        batch = {name: tensor.to(device) for name, tensor in drawn.items()}
        with sdpa_kernel(attention_backends(stage.side, device)):
            loss = backbone.loss(state["model"], batch)
        take_step(loss, state, stage.rate_at(step, recipe.warmup), recipe)
        total += loss.item()
        if step % LOG_EVERY == LOG_EVERY - 1:
            speed = LOG_EVERY * stage.batch / stopwatch.lap(f"stage {number}")
            print(
                f"stage {number} step {step + 1}/{stage.steps} loss {total / LOG_EVERY:.4f} "
                f"{speed:.0f} pictures/s",
                flush=True,
            )
            total = 0.0


def attention_backends(side: int, device: torch.device) -> list[SDPBackend]:
    """Choose unfused attention for small pictures on a CPU, where it is faster.

    Measured on one thread in pictures/s, fused and unfused: 168 and 256 (UNet, 32 px), 75 and 101
    (FLUX, 32 px), 24 and 21 (FLUX, 64 px).
    """
    return [SDPBackend.MATH] if device.type == "cpu" and side <= 32 else ALL_BACKENDS


def take_step(loss: Tensor, state: State, rate: float, recipe: Recipe) -> None:
    """Take one step of both optimizers and of the average."""
    multipliers = {"muon": recipe.muon, "adamw": 1.0}
    for name in multipliers:
        state[name].zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state["model"].parameters(), recipe.clip)
    for name, multiplier in multipliers.items():
        for group in state[name].param_groups:
            group["lr"] = rate * multiplier
        state[name].step()
    update_average(state["average"], state["model"], recipe.ema)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every parameter of the average towards the model's."""
    averages: list[Tensor] = list(average.parameters())
    values: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(averages, values, 1 - decay)
