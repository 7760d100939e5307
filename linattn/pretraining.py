"""Small teachers from scratch: an autoencoder and a DiT, trained on the world, gated by the judge.

- First on the 8 x 8 latents of 32 px pictures, whose 64 positions lie at every second place of the 16 x 16 grid: the
  weights carry over, and the stage that costs a quarter does more than half of the work.
- Hidden matrices learn by Muon, the rest by AdamW. Labels are dropped once a step, coherently for all blocks.
- Killed at any moment, the same call goes on from its scratch folder and ends with the same weights.
- A teacher that fails its gate stays in scratch with its card; it never replaces one that passed.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from linattn import autoencoder, checkpoint, judge, metrics, project, sampling, teachers, world
from linattn.diffusion import Diffusion, split

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are
SCHEDULER = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",  # few steps must begin at pure noise
}


@dataclass(frozen=True)
class Stage:
    """One stretch of training: pictures of `side` px, the learning rate falling linearly from `rate` to `final`."""

    side: int
    steps: int
    rate: float
    final: float
    batch: int = 64


@dataclass(frozen=True)
class Recipe:
    stages: tuple[Stage, ...]
    pictures: int = 32768
    width: int = 128
    layers: int = 6
    heads: int = 4
    muon: float = 4.0  # times the rate: a hidden matrix takes larger steps than AdamW would dare
    warmup: int = 100
    ema: float = 0.998
    label_drop: float = 0.1
    clip: float = 1.0
    seed: int = 0
    autoencoder: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, float] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)


def build(recipe: Recipe, latent_side: int = 16, channels: int = 4) -> DiTTransformer2DModel:
    model = DiTTransformer2DModel(
        num_attention_heads=recipe.heads,
        attention_head_dim=recipe.width // recipe.heads,
        in_channels=channels,
        out_channels=2 * channels,
        num_layers=recipe.layers,
        sample_size=latent_side,
        patch_size=1,
        activation_fn="gelu-approximate",
        attention_bias=True,
        num_embeds_ada_norm=NULL_CLASS,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    for block in model.transformer_blocks:
        # Each block would draw its own label drops: the unconditional branch would never be seen whole.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
        _silence(block.norm1.linear)  # adaLN-Zero: every block begins as the identity
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    _silence(model.proj_out_1)
    _silence(model.proj_out_2)
    return model


def _silence(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def encoded_world(vae: AutoencoderKL, folder: Path, side: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Latents and labels of `count` scenes, kept in shards so that a killed run goes on where it was."""
    latents, labels = [], []
    for start in range(0, count, 2048):
        path = folder / f"world-{side}-{start}.safetensors"
        if not path.exists():
            scenes = world.scenes(min(2048, count - start), seed, start=start)
            picture = autoencoder.pictures(scenes, side).to(vae.device)
            with torch.no_grad():
                parts = [vae.encode(part).latent_dist.mean.cpu() for part in picture.split(256)]
            checkpoint.save(path, {"latents": torch.cat(parts), "labels": torch.tensor([s.label for s in scenes])})
        shard = checkpoint.load(path)
        latents.append(shard["latents"])
        labels.append(shard["labels"])
    return torch.cat(latents), torch.cat(labels)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and (".attn1." in name or ".ff." in name)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return {
        "muon": torch.optim.Muon(hidden, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0),
    }


def loss(model: nn.Module, diffusion: Diffusion, clean: Tensor, labels: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """DiT's: squared error of the prediction plus the variational bound, which trains the variance alone."""
    noisy = diffusion.noised(clean, eps, t)
    with torch.autocast(clean.device.type, torch.bfloat16):
        output = model(noisy, timestep=t, class_labels=labels, return_dict=False)[0]
    prediction, raw = split(output.float())
    error = F.mse_loss(prediction, diffusion.target(clean, eps, t))
    return error + diffusion.variational_bound(prediction, raw, clean, noisy, t).mean()


def train(vae: AutoencoderKL, recipe: Recipe, scratch: Path, device: str = "cpu", every: int = 250) -> nn.Module:
    """The averaged model. Killed at any moment, the same call goes on and ends with the same weights."""
    torch.manual_seed(recipe.seed)
    model = build(recipe).to(device)
    average = build(recipe).to(device).requires_grad_(False).eval()
    average.load_state_dict(model.state_dict())
    parts = {"model": model, "average": average, **optimizers(model)}
    diffusion = Diffusion.of(DPMSolverMultistepScheduler(**SCHEDULER))
    for number, stage in enumerate(recipe.stages):
        data = encoded_world(vae, scratch, stage.side, recipe.pictures, recipe.seed)
        _train_stage(number, recipe, parts, data, diffusion, scratch, every)
    return average


def _train_stage(
    number: int,
    recipe: Recipe,
    parts: Mapping[str, Any],
    data: tuple[Tensor, Tensor],
    diffusion: Diffusion,
    scratch: Path,
    every: int,
) -> None:
    stage, (latents, labels) = recipe.stages[number], data
    model, device = parts["model"], next(parts["model"].parameters()).device
    settings = {"stages": [vars(each) for each in recipe.stages[: number + 1]], **_settings(recipe)}
    watch = Stopwatch(scratch / "seconds.json")
    total = 0.0
    for step in checkpoint.Resumable(scratch / f"stage-{number}.safetensors", parts, stage.steps, settings, every):
        draw = checkpoint.generator(recipe.seed + 1 + number, step)
        rows = torch.randint(len(latents), (stage.batch,), generator=draw)
        t = diffusion.draw_times(stage.batch, draw)
        eps = torch.randn(stage.batch, *latents.shape[1:], generator=draw)
        dropped = torch.rand(stage.batch, generator=draw) < recipe.label_drop
        label = torch.where(dropped, NULL_CLASS, labels[rows])
        value = loss(model, diffusion, *(each.to(device) for each in (latents[rows], label, eps, t)))
        _step(value, parts, _rate(stage, step, recipe.warmup), recipe)
        total += value.item()
        if step % 50 == 49:
            seconds = watch.lap(f"stage {number}")
            where = f"stage {number} step {step + 1}/{stage.steps}"
            print(f"{where} loss {total / 50:.4f} {50 * stage.batch / seconds:.0f} pictures/s", flush=True)
            total = 0.0


def _step(value: Tensor, parts: Mapping[str, Any], rate: float, recipe: Recipe) -> None:
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


class Stopwatch:
    """Seconds spent a part, over every run that was killed and went on."""

    def __init__(self, path: Path):
        self.path, self.began = path, time.monotonic()

    def read(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def lap(self, part: str) -> float:
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        spent = self.read()
        project.write_json(self.path, spent | {part: round(spent.get(part, 0.0) + seconds, 1)})
        return seconds


def _settings(recipe: Recipe) -> dict[str, Any]:
    apart = ("stages", "autoencoder", "gate", "sampler")  # of no consequence for one stage's weights
    return {key: value for key, value in vars(recipe).items() if key not in apart}


def _rate(stage: Stage, step: int, warmup: int) -> float:
    falling = stage.rate + (stage.final - stage.rate) * step / stage.steps
    return falling * min(1.0, (step + 1) / warmup)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def assemble(model: nn.Module, vae: AutoencoderKL, labels: Sequence[str] = world.LABELS) -> DiTPipeline:
    """The stock pipeline; its labels are registered, or saving would forget them."""
    names = dict(enumerate(labels))
    pipe = DiTPipeline(model, vae, DPMSolverMultistepScheduler(**SCHEDULER), id2label=names)
    pipe.register_to_config(id2label=names)
    return pipe


# What is committed ----------------------------------------------------------------------------------------------------

DIT_NANO = Recipe(
    autoencoder={"steps": 5000, "batch": 16, "learning_rate": 2e-3, "seed": 0},
    stages=(
        Stage(side=32, steps=5750, rate=1.5e-3, final=1.140625e-3, batch=64),
        Stage(side=64, steps=1800, rate=1.0e-3, final=2e-5, batch=32),
    ),
    sampler={"steps": 20, "guidance": 3.0, "side": 64},
    gate={"shape": 0.90, "colour": 0.97, "pictures": 600, "seed": 0},
)


class FailedGate(RuntimeError):
    pass


def make(folder: Path, recipe: Recipe = DIT_NANO, device: str | None = None) -> Path:
    """Train, store, measure the stored files, and put them in place if they pass."""
    folder, device = Path(folder), device or project.device()
    scratch = project.scratch(folder.name)
    vae = autoencoder.train(scratch, device=device, **recipe.autoencoder)
    model = train(vae, recipe, scratch, device)
    draft = scratch / "draft"
    store(assemble(model.cpu(), vae.cpu()), draft, recipe, scratch)
    marks = measure(draft, recipe)
    write_card(draft, marks)
    for part in ("shape", "colour"):
        if marks[part]["value"] < recipe.gate[part]:
            raise FailedGate(
                f"the judge finds the right {part} in {marks[part]['value']:.1%}, the gate asks for "
                f"{recipe.gate[part]:.0%}; it stays in {draft}: add steps to a stage of the recipe and run again"
            )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(draft, folder)
    return folder


def store(pipe: DiTPipeline, folder: Path, recipe: Recipe, scratch: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600: nobody else could read a shared clone
    card = {
        **recipe.sampler,
        "sampler": "DPM-Solver++(2M), trailing",
        "labels": list(world.LABELS),
        "training": {**asdict(recipe), "data": f"{recipe.pictures} scenes of linattn.world, seed {recipe.seed}"},
        "seconds": Stopwatch(scratch / "seconds.json").read(),
        "autoencoder_psnr": {f"{side}px": round(autoencoder.psnr(pipe.vae, side), 2) for side in (64, 128)},
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()),
        "facts": project.facts(),
    }
    project.write_json(folder / "card.json", card)


def measure(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The gate, on the stored files: every class equally often, judged for shape and colour."""
    teacher = teachers.load(folder)
    count = recipe.gate["pictures"]
    labels = torch.arange(count) % teacher.classes
    pictures = sampling.draw(teacher, labels, seed=recipe.gate["seed"])
    save_grid(pictures[: teacher.classes], folder / "grid.png")
    marks = metrics.judge_accuracy(judge.load(project.ROOT / "data" / "judge"), pictures, labels)
    return {name: mark | {"seed": recipe.gate["seed"]} for name, mark in marks.items() if name in recipe.gate}


def save_grid(pictures: Tensor, path: Path, columns: int = 12) -> None:
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)  # (rows, side, columns, side, 3)
    pixels = rows.flatten(2, 3).flatten(0, 1).mul(255).round().byte()
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def write_card(folder: Path, marks: Mapping[str, Any]) -> None:
    """The measurements into card.json, and the card as a person reads it."""
    card = project.read_json(folder / "card.json") | {"gate": marks}
    project.write_json(folder / "card.json", card)
    training, facts = card["training"], card["facts"]
    marked = "; ".join(f"{name} {m['value']:.1%} ({m['low']:.1%} to {m['high']:.1%})" for name, m in marks.items())
    stages = "; ".join(f"{s['steps']} steps of {s['batch']} at {s['side']} px" for s in training["stages"])
    minutes = sum(card["seconds"].values()) / 60
    hardware = facts["hardware"]
    (folder / "README.md").write_text(f"""# dit-nano

A `DiTPipeline` that draws one coloured shape before a background, 64 px, 60 classes (shape x colour).
Made from scratch by `notebooks/01_teacher.ipynb`; `DiTPipeline.from_pretrained` loads this folder.

![One picture a class](grid.png)

- Sampling: {card["sampler"]}, {card["steps"]} steps, guidance {card["guidance"]}. No pipeline folder stores these:
  pass them.
- Judged on {marks["shape"]["n"]} pictures of these files, right: {marked}
  (95 % intervals, seed {marks["shape"]["seed"]}).
- Data: {training["data"]}.
- Transformer: {card["parameters"] / 1e6:.2f} M parameters, width {training["width"]}, {training["layers"]} layers,
  {training["heads"]} heads, 256 tokens, velocity prediction, learned variance; {stages}.
- Autoencoder: factor 4, 4 channels, {training["autoencoder"]["steps"]} steps, {card["autoencoder_psnr"]["64px"]} dB.
- Trained in {minutes:.0f} minutes on {hardware["gpu"] or hardware["cpu"]}, {hardware["threads"]} threads,
  torch {facts["versions"]["torch"]}, commit {facts["commit"]}.
""")
