"""Make every generator of random numbers from a seed and one more number.

torch's CPU generator keeps only the low 32 bits of what it is seeded with, so two numbers cannot
be packed into 64 bits. They are hashed instead. Results depend on these streams, so
tests/test_seeds.py holds them to literal values.
"""

import hashlib

import torch


def of_step(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one training step, whatever came before that step."""
    return torch.Generator(device).manual_seed(_hash(f"{seed}/{step}"))


def of_picture(seed: int, number: int) -> torch.Generator:
    """Return the generator of picture `number`: its starting noise, then that of its steps.

    The seed is hashed to an offset among 2**32 states, and picture `number` takes the state
    `number` after it, so that no two pictures of one seed share a state.

    Args:
        seed: the seed of the draw.
        number: the number of the picture.
    """
    return torch.Generator("cpu").manual_seed((_hash(f"{seed:d}") + number) % 2**32)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
