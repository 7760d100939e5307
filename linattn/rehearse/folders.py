"""Write pipelines with random weights in the layout and at the widths of published models."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, T5EncoderModel

from linattn import digests, project
from linattn.files import whole_folder
from linattn.names import known
from linattn.rehearse import tokenizers
from linattn.rehearse.pipelines import PIPELINES, VAE_SCALES
from linattn.shapes import Shape, shape
from linattn.teachers import quiet

# by the class of the encoder that reads their tokens; all others are CLIP's
TOKENIZERS: dict[type, Callable[[], Any]] = {
    T5EncoderModel: tokenizers.t5,
    Qwen2_5_VLForConditionalGeneration: tokenizers.qwen,
}


def write(name: str, folder: str | Path, *, full_depth: bool = False, seed: int = 0) -> Path:
    """Write a pipeline with random weights, or keep the one that is there, and return its folder.

    Args:
        name: one of dit, sd15, sdxl, pixart, sd35, flux, qwen.
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
    with whole_folder(folder) as draft, quiet():
        pipe.save_pretrained(draft)
        project.write_json(draft / project.REHEARSAL, recipe)
    return folder


def _sources() -> list[Path]:
    names = ("folders.py", "pipelines.py", "tokenizers.py")
    return [Path(__file__).with_name(name) for name in names]


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
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        readers[tokenizer] = TOKENIZERS.get(type(module), tokenizers.clip)()
    return readers


def _loud(model: nn.Module) -> nn.Module:
    """Draw the matrices that begin at zero, so that every block has a say in the output."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5)
    return model
