"""Store a small teacher: a stock pipeline's folder, its card and its grid, behind its gate.

A teacher that fails its gate stays in scratch with its card; it never replaces one that passed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import Tensor

from linattn import project, sums
from linattn.pretraining import autoencoder, loop
from linattn.pretraining.backbone import Backbone
from linattn.pretraining.recipe import Recipe, Stopwatch


class FailedGate(RuntimeError):
    """Report a teacher whose pictures the judge marks below its gate."""


def make(folder: Path, backbone: Backbone[Any], recipe: Recipe, device: str | None = None) -> Path:
    """Train, store, mark pictures of the stored files, and put them in place if they pass."""
    folder, device = Path(folder), device or project.device()
    scratch = project.scratch(folder.name)
    draft = scratch / "draft"
    vae = _autoencoder(recipe, scratch, device)
    model = loop.train(backbone, vae, recipe, scratch, device)
    store(backbone, backbone.assemble(model.cpu(), vae.cpu()), draft, recipe, scratch)
    marks = backbone.measure(draft, recipe)
    seeded = {name: {**mark, "seed": recipe.gate["seed"]} for name, mark in marks.items()}
    write_card(backbone, draft, seeded)
    for name in ("shape", "colour"):
        value, least = marks[name]["value"], recipe.gate[name]
        if value < least:
            raise FailedGate(
                f"the judge finds the right {name} in {value:.1%}, the gate asks for {least:.0%}; "
                f"the teacher stays in {draft}: add steps to a stage of the recipe and run again"
            )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(draft, folder)
    if (folder.parent.parent / sums.NAME).is_file():
        sums.write(folder, folder.parent.parent)
    return folder


def _autoencoder(recipe: Recipe, scratch: Path, device: str) -> AutoencoderKL:
    """Return another teacher's autoencoder where the recipe names one, or train it."""
    if "of" in recipe.autoencoder:
        folder = project.ROOT / "data" / "teachers" / recipe.autoencoder["of"] / "vae"
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True).to(device).eval()
    return autoencoder.train(scratch, device=device, **recipe.autoencoder)


def store(
    backbone: Backbone[Any], pipe: DiffusionPipeline, folder: Path, recipe: Recipe, scratch: Path
) -> None:
    """Write the pipeline and its card into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files with mode 0600
    for path in folder.rglob("*.json"):
        _remove_source(path)
    psnr = {f"{side}px": round(autoencoder.psnr(pipe.vae, side), 2) for side in (64, 128)}
    card = {
        **recipe.sampler,
        **backbone.card(pipe, recipe),
        "sampler": backbone.sampler,
        "training": asdict(recipe),
        "factor": 2 ** (len(pipe.vae.config.block_out_channels) - 1),
        "channels": pipe.vae.config.latent_channels,
        "seconds": Stopwatch(scratch / "seconds.json").read(),
        "autoencoder_psnr": psnr,
        "facts": project.facts(),
    }
    project.write_json(folder / "card.json", card)


def _remove_source(path: Path) -> None:
    """Remove the path from which diffusers loaded a model, since it is a path of this machine."""
    config = project.read_json(path)
    if "_name_or_path" in config:
        del config["_name_or_path"]
        project.write_json(path, config)


def save_grid(pictures: Tensor, path: Path, columns: int = 12) -> None:
    """Save pictures (count, 3, side, side) in [0, 1] side by side."""
    lines = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    pixels = lines.flatten(2, 3).flatten(0, 1).mul(255).round().byte()  # (height, width, 3)
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def write_card(backbone: Backbone[Any], folder: Path, marks: Mapping[str, Any]) -> None:
    """Write the marks into card.json, and the card as a README for persons."""
    card = project.read_json(folder / "card.json") | {"gate": marks}
    project.write_json(folder / "card.json", card)
    training, facts, (drawing, model) = card["training"], card["facts"], backbone.described(card)
    marked = "; ".join(f"{name} {_mark_text(mark)}" for name, mark in marks.items())
    stages = []
    for stage in training["stages"]:
        stages.append(f"{stage['steps']} steps of {stage['batch']} at {stage['side']} px")
    minutes = sum(card["seconds"].values()) / 60
    hardware, latents = facts["hardware"], training["autoencoder"]
    learned = f"that of {latents['of']}" if "of" in latents else f"{latents['steps']} steps"
    psnr = card["autoencoder_psnr"]["64px"]
    loader = "`DiffusionPipeline.from_pretrained` loads this folder"
    sampling = f"{card['sampler']}, {card['steps']} steps, guidance {card['guidance']}"
    machine = f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} threads"
    (folder / "README.md").write_text(f"""# {backbone.name}

{drawing}
Made from scratch by `notebooks/01_teacher.ipynb`; {loader}.

![What it draws](grid.png)

- Sampling: {sampling}. No pipeline folder stores these:
  pass them.
- Judged on {marks["shape"]["n"]} pictures of these files, right: {marked}
  (95 % intervals, seed {marks["shape"]["seed"]}).
- Data: {card["data"]}.
- {model}; {"; ".join(stages)}.
- Autoencoder: factor {card["factor"]}, {card["channels"]} channels, {learned}, {psnr} dB.
- Trained in {minutes:.0f} minutes on {machine},
  torch {facts["versions"]["torch"]}, commit {facts["commit"]}.
""")


def _mark_text(mark: Mapping[str, Any]) -> str:
    chance = f", chance {mark['chance']:.1%}" if "chance" in mark else ""
    return f"{mark['value']:.1%} ({mark['low']:.1%} to {mark['high']:.1%}{chance})"
