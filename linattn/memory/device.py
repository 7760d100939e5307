"""Say before a training what it needs and what its device has, and refuse what cannot fit."""

from typing import Any

import psutil
import torch
from torch import nn

from linattn import families
from linattn.distillation.config import DistillConfig
from linattn.distillation.encoding import away
from linattn.memory.need import GB, Need, bytes_of, fixed, needed
from linattn.memory.step import Shapes


def check(
    config: DistillConfig, teacher: Any, device: torch.device, processes: int = 1
) -> Need | None:
    """Compare what a training needs with what the device has, and return the need.

    On a GPU a step is run without memory, one line is printed, and what does not fit is refused. On
    a CPU only weights and optimizer are added up, and refused beyond all RAM there is.

    Args:
        config: the student and its training.
        teacher: a `Teacher`.
        device: where it will be trained.
        processes: how many share a batch.
    """
    shapes, encoders = shapes_of(teacher), encoders_of(teacher)
    if device.type != "cuda":
        need = fixed(shapes, config, encoders)
        _require(need, config, 0, psutil.virtual_memory().total, "this machine")
        return need
    pictures = min(config.micro or config.batch, config.batch // processes)
    need, has = needed(shapes, config, encoders), free(device)
    name = torch.cuda.get_device_name(device)
    print(f"{sentence(need, pictures)}; {name} has {has / GB:.1f} GB", flush=True)
    _require(need, config, pictures, has, name)
    return need


def shapes_of(teacher: Any) -> Shapes:
    """Return the shapes of a teacher in hand, at its card's side."""
    model, card = teacher.model, teacher.card
    text = families.family(model).text_tokens(card.get("text_length"))
    return Shapes(model, teacher.diffusion, card["side"] // teacher.factor, text)


def encoders_of(teacher: Any) -> int:
    """Return the bytes of text encoders and VAE."""
    modules: list[nn.Module] = away(teacher.conditions)
    return sum(map(bytes_of, modules))


def free(device: torch.device) -> int:
    """Return the bytes of a GPU that this process has or may take."""
    left, _ = torch.cuda.mem_get_info(device)
    return left + torch.cuda.memory_reserved(device)


def sentence(need: Need, pictures: int) -> str:
    """Say in one line what a training needs."""
    return (
        f"the training needs {need.total(pictures) / GB:.1f} GB: {need.fixed / GB:.1f} before the "
        f"first picture and {need.picture / GB:.2f} for each of {pictures} at once"
    )


def _require(need: Need, config: DistillConfig, pictures: int, has: float, name: str) -> None:
    """Raise ValueError with the settings that help, where the device has too little."""
    if need.total(pictures) <= has:
        return
    raise ValueError(
        f"{sentence(need, pictures)}, and {name} has {has / GB:.1f} GB; "
        + (", ".join(remedies(need, config, pictures, has)) or "it takes a larger device")
    )


def remedies(need: Need, config: DistillConfig, pictures: int, has: float) -> list[str]:
    """List the settings that would take less memory than these."""
    if (fitting := min(need.fits(has), pictures - 1)) > 0:
        return [f"set micro to {fitting}"]
    helping = []
    if not config.checkpointing:
        helping.append("set checkpointing to true")
    if pictures > 1:
        helping.append("set micro to 1")
    if need.encoders:
        helping.append(f"set encoders to 'leave' (-{need.encoders / GB:.1f} GB)")
    if config.trains == "all":
        helping.append("set trains to 'attention'")
    helping.append("load the teacher in bfloat16 where it is in float32")
    return helping
