"""Write pipelines with random weights in the layout and at the widths of published models."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from torch import nn
from transformers import T5EncoderModel

from linattn import digests, project
from linattn.names import known
from linattn.rehearse import tokenizers
from linattn.shapes import Shape, shape
from linattn.teachers import quiet

Parts = Mapping[str, Any]


def sd15(parts: Parts) -> Any:
    steps = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = PNDMScheduler(**steps, skip_prk_steps=True, steps_offset=1)
    return StableDiffusionPipeline(
        unet=parts["model"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_without_model(parts),
    )


def pixart(parts: Parts) -> Any:
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", algorithm_type="dpmsolver++")
    return PixArtSigmaPipeline(
        transformer=parts["model"], scheduler=scheduler, **_without_model(parts)
    )


def sd35(parts: Parts) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        transformer=parts["model"], scheduler=scheduler, **_without_model(parts)
    )


def flux(parts: Parts) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, max_shift=1.15, base_shift=0.5
    )
    return FluxPipeline(transformer=parts["model"], scheduler=scheduler, **_without_model(parts))


def _without_model(parts: Parts) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name != "model"}


PIPELINES: dict[str, Callable[[Parts], Any]] = {
    "sd15": sd15,
    "pixart": pixart,
    "sd35": sd35,
    "flux": flux,
}
VAE_SCALES = {  # the published autoencoders' own
    "sd15": {"scaling_factor": 0.18215},
    "pixart": {"scaling_factor": 0.13025},
    "sd35": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}


def write(name: str, folder: str | Path, *, full_depth: bool = False, seed: int = 0) -> Path:
    """Write a pipeline with random weights, or keep the one that is there, and return its folder.

    Args:
        name: one of sd15, pixart, sd35, flux.
        folder: where the pipeline is written; its weights are bfloat16.
        full_depth: whether it is as deep as the published model, which FLUX needs 34 GB for.
        seed: of the weights.
    """
    known(name, PIPELINES, "model to rehearse")
    folder = Path(folder)
    recipe = {
        "name": name,
        "full_depth": full_depth,
        "seed": seed,
        "code": digests.of_code(_sources()),
    }
    mark = folder / project.REHEARSAL
    if mark.is_file() and project.read_json(mark) == recipe:
        return folder
    pipe = _build(name, full_depth, seed)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    with quiet():
        pipe.save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    project.write_json(mark, recipe)
    return folder


def _sources() -> list[Path]:
    return [Path(__file__), Path(__file__).with_name("tokenizers.py")]


def _build(name: str, full_depth: bool, seed: int) -> Any:
    model = shape(name)
    with torch.random.fork_rng(devices=[]), _half():
        torch.manual_seed(seed)
        parts = {
            "model": _loud(model.build(shallow=not full_depth)),
            "vae": model.build_vae(**VAE_SCALES[name]),
            **_readers(model, None if full_depth else 1),
        }
    return PIPELINES[name](parts)


@contextlib.contextmanager
def _half() -> Iterator[None]:
    """Make new weights bfloat16: those of FLUX and T5 take 34 GB so, and 67 in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _readers(model: Shape, depth: int | None) -> dict[str, Any]:
    """Build the text encoders and their tokenizers by their names in the pipeline."""
    encoders = model.build_encoders(depth)
    readers: dict[str, Any] = dict(encoders)
    for encoder, module in encoders.items():
        is_t5 = isinstance(module, T5EncoderModel)
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        readers[tokenizer] = tokenizers.t5() if is_t5 else tokenizers.clip()
    return readers


def _loud(model: nn.Module) -> nn.Module:
    """Draw the matrices that begin at zero, so that every block has a say in the output."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
    return model
