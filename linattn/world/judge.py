"""The judge: a small classifier of the world that marks what a model drew.

- Shape and colour are known of every picture asked for, so accuracy needs no downloaded network.
- Its 128 features are the space of FID and KID here. They compare rows of this repository and nothing else:
  never with a published (Inception) FID.
- Trained on blurred and noisy copies too, so that a slightly soft picture of a star is still a star.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from linattn.checkpoint import Resumable, generator
from linattn.world import drawing

SIDE = 64


@dataclass(frozen=True)
class Marks:
    shape: Tensor  # (batch, shapes) logits
    colour: Tensor  # (batch, colours) logits
    features: Tensor  # (batch, 128)

    def right(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether shape and colour are those of the class, each (batch,) boolean."""
        shape, colour = labels // len(drawing.COLOURS), labels % len(drawing.COLOURS)
        return self.shape.argmax(1) == shape, self.colour.argmax(1) == colour


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class Judge(nn.Module):
    num_features = 128

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96, self.num_features)
        self.stages = nn.Sequential(*[_stage(*pair) for pair in itertools.pairwise(widths)])
        self.shape = nn.Linear(self.num_features, len(drawing.SHAPES))
        self.colour = nn.Linear(self.num_features, len(drawing.COLOURS))

    def forward(self, pictures: Tensor) -> Marks:
        """Pictures (batch, 3, side, side) in [0, 1], of any side: they are averaged or stretched to 64 px."""
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = self.stages(pictures * 2 - 1)  # (batch, 128, 4, 4)
        # The maximum finds the thing wherever it is, whatever the background around it says.
        features = maps.amax((2, 3)) + maps.mean((2, 3))
        return Marks(self.shape(features), self.colour(features), features)


def load(folder: Path) -> Judge:
    path = Path(folder) / "judge.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no judge at {path}; `python -m linattn.judge` trains one")
    judge = Judge()
    judge.load_state_dict(load_file(path))
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
    torch.manual_seed(seed)
    judge = Judge().to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    recipe = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    parts = {"judge": judge, "optimizer": optimizer, "schedule": schedule}
    for step in Resumable(Path(scratch) / "judge.safetensors", parts, steps, recipe):
        scenes = drawing.scenes(batch, seed, start=step * batch)
        labels = torch.tensor([scene.label for scene in scenes]).to(device)
        pictures = spoil(drawing.render(scenes, SIDE), generator(seed, step)).to(device)
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


def spoil(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """A third of the pictures blurred and a little noise on another third: what generators do to edges."""
    fate = torch.rand(len(pictures), 1, 1, 1, generator=draw)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.randn(pictures.shape, generator=draw) * 0.06
    return torch.where(fate < 1 / 3, blurred, torch.where(fate < 2 / 3, pictures + noise, pictures))


def accuracy(judge: Judge, seed: int = 1, count: int = 4000, side: int = SIDE) -> dict[str, float]:
    """On scenes it was never trained on."""
    shapes = colours = 0
    for start in range(0, count, 250):
        scenes = drawing.scenes(min(250, count - start), seed, start=drawing.HELD_OUT + start)
        labels = torch.tensor([scene.label for scene in scenes])
        shape, colour = judge(drawing.render(scenes, side)).right(labels)
        shapes, colours = shapes + shape.sum().item(), colours + colour.sum().item()
    return {"shape": shapes / count, "colour": colours / count, "n": count, "seed": seed}


def main() -> None:
    from linattn import project

    # Once it is nearly always right, gradients sink below 1e-38, where this arithmetic is 20 times slower on a CPU.
    torch.set_flush_denormal(True)
    folder = project.ROOT / "data" / "judge"
    settings = {"steps": 2000, "batch": 64, "learning_rate": 2e-3, "seed": 7}
    judge = train(project.scratch("judge"), **settings)
    measured = {f"held_out_{side}px": accuracy(judge, side=side) for side in (64, 128)}
    for side, marks in measured.items():
        if min(marks["shape"], marks["colour"]) < 0.99:
            raise SystemExit(f"{side}: {marks}; a judge below 99 % judges nobody: train it for more steps")
    card = {"what": __doc__.split("\n")[0], "training": settings, **measured, "facts": project.facts()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), folder / "judge.safetensors")
    (folder / "judge.safetensors").chmod(0o644)  # safetensors writes 0600
    project.write_json(folder / "card.json", card)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
