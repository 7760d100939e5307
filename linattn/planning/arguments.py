"""Refuse what cannot be planned, before anything is converted."""

from typing import Any

from linattn import families
from linattn.distillation.settings import Settings
from linattn.names import short


def check(
    teacher: Any, samples: Any, budget: float, pictures: int, training: Settings | None
) -> None:
    """Raise ValueError for a wrong argument of `plan`."""
    if not budget > 0:
        raise ValueError(f"budget is {budget}; it is a share of softmax's cost above 0")
    _check_teacher(teacher)
    _check_samples(samples, pictures)
    if training is not None and not isinstance(training, Settings):
        raise ValueError(f"training is {short(training)}; it must be Settings, or None")
    if training is not None and not training.layerwise_steps:
        raise ValueError(
            "training has 0 layerwise steps, and candidates are measured after these alone: set "
            "layerwise_steps, or leave training out"
        )


def _check_teacher(teacher: Any) -> None:
    if not hasattr(teacher, "conditions"):
        raise ValueError(
            f"teacher is {short(teacher)}; it must be a Teacher, as linattn.teachers.load returns"
        )
    for layer in families.layers(teacher.model):
        if layer.operator is not None:
            raise ValueError(
                f"layer {layer.index} of the teacher has {layer.operator.name}, and a plan starts "
                "from softmax in all layers: linattn.restore(teacher)"
            )


def _check_samples(samples: Any, pictures: int) -> None:
    if not hasattr(samples, "first") or not hasattr(samples, "__len__"):
        raise ValueError(f"samples are {short(samples)}; pass linattn.samples.Samples")
    if pictures > len(samples):
        raise ValueError(
            f"pictures is {pictures} and there are {len(samples)} samples: lower it, or write more"
        )
