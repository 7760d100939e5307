"""Which class of diffusers is of which family, and what is said of the others."""

import inspect
from typing import Any

from torch import nn

from linattn.families.base import Family, Layer
from linattn.families.dit import DiT, PixArt
from linattn.families.flux import Flux
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
    "ZImageTransformer2DModel": "its forward hands nothing down to its attentions (joint_attention_kwargs ends at the "
    "LoRA scale), so height, width and noise cannot reach a layer with the call; from what a layer "
    "is given, hidden "
    "states, a mask and rotary factors, the noise cannot be derived",
    "UNetMotionModel": "its blocks attend over time too, where tokens have no grid",
}


def family(model: nn.Module) -> Family:
    """By the class and its parents, never by the folder's config: old checkpoints name other
    classes there.
    """
    names = [kind.__name__ for kind in type(model).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    reason = next((REFUSED[name] for name in names if name in REFUSED), None) or _why(model)
    raise ValueError(
        f"{type(model).__name__} is not supported: {reason}; supported are models of the classes "
        f"{', '.join(FAMILIES)} and diffusers pipelines that hold one"
    )


def _why(model: nn.Module) -> str:
    """Of a class that nobody here has read: what the arguments of its forward tell."""
    if not any(hasattr(module, "set_processor") for module in model.modules()):
        return "it has none of diffusers' attention layers"
    names = inspect.signature(type(model).forward).parameters
    # what our families read
    told = next((name for name in ("img_ids", "img_shapes") if name in names), None)
    said = (
        f"its tokens lie on the picture as {told} says, but how its layers project and attend is "
        "not known here"
        if told
        else "how its tokens lie on the picture is not known here"
    )
    if any(name.endswith("attention_kwargs") for name in names):
        return f"{said}: a family of its own tells that (CONTRIBUTING.md)"
    return (
        f"{said}, and its forward takes no dictionary that it would hand down to its attentions, "
        "so height, width and "
        "noise cannot reach a layer with the call"
    )


def model_of(model_or_pipeline: Any) -> nn.Module:
    """The denoising model of a pipeline or Teacher; a model as it is, without torch.compile's or
    DDP's wrapper.
    """
    wrapped = (
        ("_orig_mod", "module")
        if isinstance(model_or_pipeline, nn.Module)
        else ("transformer", "unet", "model")
    )
    for name in wrapped:
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
    """Every self-attention, numbered in the order the forward meets them; cross-attention is no
    part of it.
    """
    model = model_of(model_or_pipeline)
    return family(model).layers(model)
