"""Latents to pictures and back, by the source's VAE."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from linattn.finite import finite
from linattn.reader import between, checked
from linattn.sampling.source import Source

REMEDY = "run the VAE in float32 or bfloat16, or look at what it was given"


@checked(batch=between(1))
def decode(teacher_or_pipe: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Decode latents to pictures in [0, 1], as the pipeline itself does.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        latents: scaled as the model draws them, (N, channels, height, width).
        batch: how many are decoded at once.
    """
    return torch.cat(list(decoded(teacher_or_pipe, latents, batch)))


def decoded(teacher_or_pipe: Any, latents: Tensor, batch: int = 64) -> Iterator[Tensor]:
    """Yield what `decode` returns batch by batch, for a caller that keeps them in 8 bits.

    5,000 pictures of 1024 px are 63 GB in float32.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        latents: scaled as the model draws them, (N, channels, height, width).
        batch: how many are decoded at once.
    """
    source = Source.of(teacher_or_pipe)
    for chunk in latents.split(batch):
        yield _decoded(source, chunk)


@torch.no_grad()
def _decoded(source: Source, latents: Tensor) -> Tensor:
    """Decode one batch."""
    vae = source.vae
    with upcast(vae):
        weight = next(vae.parameters())
        centred = source.conditions.pictures(latents.to(weight.device, weight.dtype), vae)
        pictures = centred.float().div(2).add(0.5).clamp(0, 1).cpu()
    return finite(pictures, "pixels of decoded latents", REMEDY)


@checked(batch=between(1))
@torch.no_grad()
def encode(teacher_or_pipe: Any, pictures: Tensor, batch: int = 64) -> Tensor:
    """Encode pictures in [0, 1] to latents, the posterior's mean, float32 on the VAE's device.

    Args:
        teacher_or_pipe: a Teacher, a pipeline or a `Source`.
        pictures: (N, 3, height, width) in [0, 1].
        batch: how many are encoded at once.
    """
    source = Source.of(teacher_or_pipe)
    means = []
    with upcast(source.vae):
        weight = next(source.vae.parameters())
        for chunk in pictures.split(batch):
            centred = (chunk * 2 - 1).to(weight.device, weight.dtype)
            means.append(source.conditions.means(centred, source.vae))
    latents = source.conditions.scaled(torch.cat(means), source.vae).float()
    return finite(latents, "encoded latents", REMEDY)


@contextmanager
def upcast(vae: Any) -> Generator[None, None, None]:
    """Run a float16 VAE in float32 meanwhile where its config asks for it.

    Its activations pass 65,504, and stock SDXL does the same. A bfloat16 VAE stays, because
    bfloat16 has float32's range. Casting the weights to float32 and back changes no bit of them.

    Args:
        vae: diffusers' autoencoder.
    """
    is_half = next(vae.parameters()).dtype == torch.float16
    needs_upcast = is_half and getattr(vae.config, "force_upcast", False)
    if needs_upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if needs_upcast:
            vae.to(torch.float16)


def eight_bits(pictures: Tensor) -> Tensor:
    """Convert pictures in [0, 1] to 8 bits on the CPU, as they would be saved.

    Args:
        pictures: floats of any shape.
    """
    # of half-precision autoencoders the channels come last in memory, which no file takes
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().contiguous()
