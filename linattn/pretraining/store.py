"""What is committed of a small teacher: a stock pipeline's folder, its card, its grid, behind its
gate.

- A teacher that fails its gate stays in scratch with its card; it never replaces one that passed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import Tensor

from linattn import project
from linattn.pretraining import autoencoder, loop
from linattn.pretraining.kind import Kind
from linattn.pretraining.recipe import Recipe, Stopwatch


class FailedGate(RuntimeError):
    pass


def make(folder: Path, kind: Kind, recipe: Recipe, device: str | None = None) -> Path:
    """Train, store, measure the stored files, and put them in place if they pass."""
    folder, device = Path(folder), device or project.device()
    scratch = project.scratch(folder.name)
    vae = _autoencoder(recipe, scratch, device)
    model = loop.train(kind, vae, recipe, scratch, device)
    draft = scratch / "draft"
    store(kind, kind.assemble(model.cpu(), vae.cpu()), draft, recipe, scratch)
    marks = kind.measure(draft, recipe)
    write_card(
        kind, draft, {name: {**mark, "seed": recipe.gate["seed"]} for name, mark in marks.items()}
    )
    for part in ("shape", "colour"):
        if marks[part]["value"] < recipe.gate[part]:
            raise FailedGate(
                f"the judge finds the right {part} in {marks[part]['value']:.1%}, the gate asks "
                "for "
                f"{recipe.gate[part]:.0%}; it stays in {draft}: add steps to a stage of the recipe "
                "and run again"
            )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(draft, folder)
    return folder


def _autoencoder(recipe: Recipe, scratch: Path, device: str) -> AutoencoderKL:
    """Another teacher's, or one of its own."""
    if "of" in recipe.autoencoder:
        place = project.ROOT / "data" / "teachers" / recipe.autoencoder["of"] / "vae"
        return AutoencoderKL.from_pretrained(place).to(device).eval()
    return autoencoder.train(scratch, device=device, **recipe.autoencoder)


def store(kind: Kind, pipe: DiffusionPipeline, folder: Path, recipe: Recipe, scratch: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600: nobody else could read a shared clone
    for path in folder.rglob("*.json"):
        _forget_place(path)
    card = {
        **recipe.sampler,
        **kind.card(pipe, recipe),
        "sampler": kind.sampler,
        "training": asdict(recipe),
        "factor": 2 ** (len(pipe.vae.config.block_out_channels) - 1),
        "channels": pipe.vae.config.latent_channels,
        "seconds": Stopwatch(scratch / "seconds.json").read(),
        "autoencoder_psnr": {
            f"{side}px": round(autoencoder.psnr(pipe.vae, side), 2) for side in (64, 128)
        },
        "facts": project.facts(),
    }
    project.write_json(folder / "card.json", card)


def _forget_place(path: Path) -> None:
    """diffusers writes down where a part was loaded from: a path of this machine."""
    config = project.read_json(path)
    if "_name_or_path" in config:
        project.write_json(
            path, {key: value for key, value in config.items() if key != "_name_or_path"}
        )


def save_grid(pictures: Tensor, path: Path, columns: int = 12) -> None:
    # (rows, side, columns, side, 3)
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    pixels = rows.flatten(2, 3).flatten(0, 1).mul(255).round().byte()
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def write_card(kind: Kind, folder: Path, marks: Mapping[str, Any]) -> None:
    """The measurements into card.json, and the card as a person reads it."""
    card = project.read_json(folder / "card.json") | {"gate": marks}
    project.write_json(folder / "card.json", card)
    training, facts, (what, made_of) = card["training"], card["facts"], kind.described(card)
    marked = "; ".join(f"{name} {_said(mark)}" for name, mark in marks.items())
    stages = "; ".join(
        f"{s['steps']} steps of {s['batch']} at {s['side']} px" for s in training["stages"]
    )
    minutes = sum(card["seconds"].values()) / 60
    hardware, latents = facts["hardware"], training["autoencoder"]
    learned = f"that of {latents['of']}" if "of" in latents else f"{latents['steps']} steps"
    (folder / "README.md").write_text(f"""# {kind.name}

{what}
Made from scratch by `notebooks/01_teacher.ipynb`; `DiffusionPipeline.from_pretrained` loads this folder.

![What it draws](grid.png)

- Sampling: {card["sampler"]}, {card["steps"]} steps, guidance {card["guidance"]}. No pipeline folder stores these:
  pass them.
- Judged on {marks["shape"]["n"]} pictures of these files, right: {marked}
  (95 % intervals, seed {marks["shape"]["seed"]}).
- Data: {card["data"]}.
- {made_of}; {stages}.
- Autoencoder: factor {card["factor"]}, {card["channels"]} channels, {learned}, {card["autoencoder_psnr"]["64px"]} dB.
- Trained in {minutes:.0f} minutes on {hardware["gpu"] or hardware["cpu"]}, {hardware["threads"]} threads,
  torch {facts["versions"]["torch"]}, commit {facts["commit"]}.
""")


def _said(mark: Mapping[str, Any]) -> str:
    chance = f", chance {mark['chance']:.1%}" if "chance" in mark else ""
    return f"{mark['value']:.1%} ({mark['low']:.1%} to {mark['high']:.1%}{chance})"
