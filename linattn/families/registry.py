"""Map diffusers' classes to their families, and say why other classes are not supported."""

import inspect
from typing import Any

from torch import nn

from linattn.families.base import Family, Layer
from linattn.families.dit import DiT
from linattn.families.flux import Flux
from linattn.families.pixart import PixArt
from linattn.families.qwen import QwenImage
from linattn.families.sd3 import SD3
from linattn.families.unet import UNet

FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": DiT(),
    "PixArtTransformer2DModel": PixArt(),
    "UNet2DConditionModel": UNet(),
    "SD3Transformer2DModel": SD3(),
    "FluxTransformer2DModel": Flux(),
    "QwenImageTransformer2DModel": QwenImage(),
}
REFUSED = {
    "SanaTransformer2DModel": "its self-attention is linear already (ReLU, no softmax to replace)",
    "ControlNetModel": "a ControlNet follows the UNet it was made for and is left dense",
    "ZImageTransformer2DModel": (
        "its forward hands nothing down to its attentions (joint_attention_kwargs ends at the LoRA "
        "scale), so height, width and noise cannot reach a layer with the call; from a layer's own "
        "arguments, hidden states, a mask and rotary factors, the noise cannot be derived"
    ),
    "UNetMotionModel": "its blocks attend over time too, where tokens have no grid",
}
# the arguments from which families read the grid of tokens that are not latents themselves
GRID_ARGUMENTS = ("img_ids", "img_shapes")


def family(model: nn.Module) -> Family:
    """Return the family of a model by its class and that class's parents.

    The folder's config is not asked, because old checkpoints name other classes there.

    Args:
        model: a diffusers model; one that is not supported is refused with the reason.
    """
    names = [ancestor.__name__ for ancestor in type(model).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    reason = next((REFUSED[name] for name in names if name in REFUSED), None) or _why(model)
    raise ValueError(
        f"{type(model).__name__} is not supported: {reason}; supported are models of the classes "
        f"{', '.join(FAMILIES)} and diffusers pipelines that hold one"
    )


def refusal(name: str) -> str:
    """Say why models of a class that is not in `FAMILIES` are not supported, by its name alone.

    Args:
        name: the class's name, as a pipeline's model_index.json has it.
    """
    reason = REFUSED.get(name, "no family here knows its layers (CONTRIBUTING.md)")
    return f"{reason}; supported are {', '.join(FAMILIES)}"


def _why(model: nn.Module) -> str:
    """Return what the forward's arguments say about a class that has no family here."""
    if not any(hasattr(module, "set_processor") for module in model.modules()):
        return "it has none of diffusers' attention layers"
    names = inspect.signature(type(model).forward).parameters
    argument = next((name for name in GRID_ARGUMENTS if name in names), None)
    reason = "how its tokens lie on the picture is not known here"
    if argument:
        reason = (
            f"its tokens lie on the picture as {argument} says, but how its layers project and "
            "attend is not known here"
        )
    if any(name.endswith("attention_kwargs") for name in names):
        return f"{reason}: a family of its own tells that (CONTRIBUTING.md)"
    return (
        f"{reason}, and its forward takes no dictionary that it would hand down to its attentions, "
        "so height, width and noise cannot reach a layer with the call"
    )


def model_of(model_or_pipeline: Any) -> nn.Module:
    """Return the denoising model of a pipeline, a Teacher or a model.

    torch.compile's and DDP's wrappers are taken off.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher.
    """
    is_model = isinstance(model_or_pipeline, nn.Module)
    for name in ("_orig_mod", "module") if is_model else ("transformer", "unet", "model"):
        inner = getattr(model_or_pipeline, name, None)
        if isinstance(inner, nn.Module):
            return model_of(inner)
    if not isinstance(model_or_pipeline, nn.Module):
        raise ValueError(
            f"expected a diffusers model or pipeline, not {type(model_or_pipeline).__name__}"
        )
    family(model_or_pipeline)  # raises where it is not supported
    return model_or_pipeline


def layers(model_or_pipeline: Any) -> list[Layer]:
    """Return every self-attention, numbered in forward order; cross-attentions are none of them.

    Args:
        model_or_pipeline: a diffusers model, a pipeline or a Teacher, linearised or not.
    """
    model = model_of(model_or_pipeline)
    return family(model).layers(model)
