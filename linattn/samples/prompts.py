"""Choose what the teacher draws: labels in balanced order, or captions of the world's scenes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linattn import seeds, world
from linattn.conditions import Conditions, Labels, Prompts
from linattn.reader import between, checked, typed

# Negative numbers are of no picture; seeds are any whole numbers.
NUMBERS: dict[str, Any] = {"numbers": between(0, empty=True), "seed": typed()}


@checked(conditions=typed(), captions=typed(), **NUMBERS)
def prompts_of(
    conditions: Conditions, numbers: Sequence[int], seed: int, captions: Sequence[str] | None = None
) -> Prompts:
    """Return the prompts of pictures: balanced labels, or captions.

    Args:
        conditions: how the teacher's pipeline is prompted: by labels or by captions.
        numbers: the numbers of the pictures.
        seed: picture i's prompt depends on this seed and i alone.
        captions: captions to repeat: picture i gets caption i modulo their number. None takes those
            of the world's scenes.
    """
    if isinstance(conditions, Labels):
        return balanced_labels(numbers, seed, conditions.classes)
    if captions is not None:
        return [captions[number % len(captions)] for number in numbers]
    return [scene.caption for scene in scenes(numbers, seed)]


@checked(**NUMBERS)
def scenes(numbers: Sequence[int], seed: int) -> list[world.Scene]:
    """Return scenes of one thing for even numbers and of two things for odd numbers.

    Args:
        numbers: the numbers of the pictures.
        seed: picture i's scene depends on this seed and i alone.
    """
    return [world.scene(seed, number, 1 + number % 2) for number in numbers]


@checked(classes=between(1), **NUMBERS)
def balanced_labels(numbers: Sequence[int], seed: int, classes: int) -> Tensor:
    """Return labels of pictures.

    Every run of `classes` pictures is a shuffle of all classes.

    Args:
        numbers: the numbers of the pictures.
        seed: picture i's label depends on this seed and i alone.
        classes: how many classes there are.
    """
    shuffles: dict[int, Tensor] = {}
    labels = []
    for number in numbers:
        block, position = divmod(number, classes)
        if block not in shuffles:
            shuffles[block] = _shuffled(seed, block, classes)
        labels.append(shuffles[block][position])
    return torch.stack(labels) if labels else torch.empty(0, dtype=torch.long)


def _shuffled(seed: int, block: int, classes: int) -> Tensor:
    # Negative numbers keep these generators apart from those of the pictures' noise.
    return torch.randperm(classes, generator=seeds.of_picture(seed, -1 - block))
