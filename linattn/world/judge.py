"""The judge: a small classifier of the world that marks what a model drew.

- The label of every picture names its shape and colour, so accuracy needs no downloaded network.
- The judge's 128 features are the space of FID and KID here. Compare them between rows of this
  repository only, never with a published (Inception) FID.
- The judge is trained on blurred and noisy copies too, so that it recognises a slightly soft
  picture of a star.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import files, sums
from linattn.checkpoint import Resumable
from linattn.reader import between, checked, typed
from linattn.seeds import of_step
from linattn.world import drawing

SIDE = 64


@dataclass(frozen=True)
class Marks:
    shape: Tensor  # (batch, shapes) logits
    colour: Tensor  # (batch, colours) logits
    features: Tensor  # (batch, 128)

    def right(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Say whether shape and colour are those of the label, both (batch,) boolean."""
        shape, colour = labels // len(drawing.COLOURS), labels % len(drawing.COLOURS)
        return self.shape.argmax(1) == shape, self.colour.argmax(1) == colour


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build two convolutions, the first of which halves the side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(),
    )


class Judge(nn.Module):
    num_features = 128

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, self.num_features)
        self.stages = nn.Sequential(*[_stage(*channels) for channels in itertools.pairwise(widths)])
        self.shape = nn.Linear(self.num_features, len(drawing.SHAPES))
        self.colour = nn.Linear(self.num_features, len(drawing.COLOURS))

    def forward(self, pictures: Tensor) -> Marks:
        """Mark pictures (batch, 3, side, side) in [0, 1]; other sides are resized to 64 px."""
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = self.stages(pictures * 2 - 1)  # (batch, 128, 4, 4)
        # The maximum finds the thing wherever it is, whatever the background around it.
        features = maps.amax((2, 3)) + maps.mean((2, 3))
        return Marks(self.shape(features), self.colour(features), features)


class Features(nn.Module):
    """Give a judge's features alone, as torchmetrics' FID and KID take an extractor.

    FrechetInceptionDistance(feature=Features(load(folder))) compares pictures in the judge's space;
    its numbers compare with others of this space only.
    """

    num_features = Judge.num_features

    def __init__(self, judge: Judge):
        super().__init__()
        self.judge = judge

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (batch, 128) of pictures (batch, 3, side, side) in bytes, or floats in [0, 1]."""
        if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.numel():
            raise ValueError(f"pictures are {tuple(pictures.shape)}; pass (batch, 3, side, side)")
        if pictures.dtype == torch.uint8:
            pictures = pictures.float() / 255
        least, most = pictures.min().item(), pictures.max().item()
        if not pictures.is_floating_point() or not (least >= 0 and most <= 1):
            raise ValueError(
                f"pictures are {pictures.dtype} from {least:g} to {most:g}; pass uint8, or "
                "floating-point numbers in [0, 1]"
            )
        return self.judge(pictures.float()).features


def load(folder: Path) -> Judge:
    """Load the trained judge of a folder, in evaluation mode without gradients."""
    path = files.path_of(folder, "folder") / "judge.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no judge at {path}; `python -m linattn.world.judge` trains one")
    sums.check(Path(folder))
    judge = Judge()
    try:
        judge.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} holds no judge ({reason}): fetch it again, or `python -m linattn.world.judge` "
            "trains one"
        ) from error
    return judge.eval().requires_grad_(False)


def train(
    scratch: Path,
    *,
    steps: int = 2000,
    batch: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 7,
    device: str = "cpu",
) -> Judge:
    """Train a judge, or resume its training from the checkpoint in `scratch`."""
    torch.manual_seed(seed)
    judge = Judge().to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    recipe = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    state = {"judge": judge, "optimizer": optimizer, "schedule": schedule}
    for step in Resumable(Path(scratch) / "judge.safetensors", state, steps, recipe):
        scenes = drawing.scenes(batch, seed, start=step * batch)
        labels = torch.tensor([scene.label for scene in scenes]).to(device)
        pictures = spoil(drawing.render(scenes, SIDE), of_step(seed, step)).to(device)
        with torch.autocast(device, torch.bfloat16):
            marks = judge(pictures)
        colours = len(drawing.COLOURS)
        loss = F.cross_entropy(marks.shape.float(), labels // colours)
        loss = loss + F.cross_entropy(marks.colour.float(), labels % colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"judge step {step + 1}/{steps} loss {loss.item():.4f}", flush=True)
    return judge.eval().requires_grad_(False)


def spoil(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a third of the pictures and add noise to another third, as generative models do."""
    draw = torch.rand(len(pictures), 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.randn(pictures.shape, generator=generator) * 0.06
    noisy_or_clean = torch.where(draw < 2 / 3, pictures + noise, pictures)
    return torch.where(draw < 1 / 3, blurred, noisy_or_clean)


@checked(judge=typed(), seed=typed(), count=between(1), side=between(1))
def accuracy(judge: Judge, seed: int = 1, count: int = 4000, side: int = SIDE) -> dict[str, float]:
    """Measure the judge's accuracy on scenes that it was not trained on."""
    right_shapes = right_colours = 0
    for start in range(0, count, 250):
        scenes = drawing.scenes(min(250, count - start), seed, start=drawing.HELD_OUT + start)
        labels = torch.tensor([scene.label for scene in scenes])
        shape, colour = judge(drawing.render(scenes, side)).right(labels)
        right_shapes += shape.sum().item()
        right_colours += colour.sum().item()
    return {
        "shape": right_shapes / count,
        "colour": right_colours / count,
        "n": count,
        "seed": seed,
    }


def main() -> None:
    """Train the judge, refuse it below 99 % accuracy, and write its weights and its card."""
    from linattn import project

    # Gradients sink below 1e-38 once the judge is nearly always right; such numbers are 20 times
    # slower on a CPU.
    torch.set_flush_denormal(True)
    folder = project.ROOT / "data" / "judge"
    settings = {"steps": 2000, "batch": 64, "learning_rate": 2e-3, "seed": 7}
    judge = train(project.scratch("judge"), **settings)
    accuracies = {f"held_out_{side}px": accuracy(judge, side=side) for side in (64, 128)}
    for name, held_out in accuracies.items():
        if min(held_out["shape"], held_out["colour"]) < 0.99:
            raise SystemExit(
                f"{name}: {held_out}; a judge needs at least 99 %: train it for more steps"
            )
    # The card quotes the first line of this module's docstring.
    card = {
        "what": __doc__.split("\n")[0],
        "training": settings,
        **accuracies,
        "facts": project.facts(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    (folder / "judge.safetensors").chmod(0o644)  # safetensors writes 0600
    project.write_json(folder / "card.json", card)
    print(json.dumps(accuracies))


if __name__ == "__main__":
    main()
