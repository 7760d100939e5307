"""The noise of pictures, each from a stream of its own."""

import torch
from torch import Tensor

from linattn.seeds import of_picture

generator = of_picture  # the name that scripts have used


def starting_noise(seed: int, numbers: range, shape: tuple[int, ...]) -> Tensor:
    """Return the noise that pictures start from.

    The noise is (len(numbers), *shape), float32 on the CPU.

    Args:
        seed: the seed of the draw.
        numbers: the numbers of the pictures.
        shape: the shape of one picture's latents.
    """
    return noise_of([of_picture(seed, number) for number in numbers], shape)


def noise_of(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Draw one picture's noise from each generator."""
    return torch.stack([torch.randn(shape, generator=stream) for stream in generators])
