"""Tiny random models of every family, and arguments of their forwards at any size.

- Every weight is drawn from the seed, the zero-initialised ones too: a silent layer would hide its
  errors. Queries and keys are sharper than the rest, so that attention is far from a mean.
- A backbone is a model of a family: SD and SDXL are one family and two backbones.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

TEXT = 16  # width of the text
CLASSES = 1000
JOINT = ("sd3", "sd35", "flux", "qwen")  # text and picture in one attention
ROTARY = ("flux", "qwen")
SHARP = ("to_q.", "to_k.", "add_q", "add_k")


def dit(
    width: int = 32, heads: int = 4, layers: int = 2, side: int = 8, patch: int = 1
) -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=CLASSES,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def unet(**config: Any) -> nn.Module:
    default = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**{**default, **config})


def sdxl(**config: Any) -> nn.Module:
    """No attention at the first level, two blocks at the second, pooled text and sizes."""
    return unet(
        **config,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
    )


def pixart(**config: Any) -> nn.Module:
    default = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 1,
        "cross_attention_dim": 32,
        "caption_channels": TEXT,
        "use_additional_conditions": False,
    }
    return PixArtTransformer2DModel(**{**default, **config})


def sd3(**config: Any) -> nn.Module:
    default = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": TEXT,
        "caption_projection_dim": 32,
        "pooled_projection_dim": TEXT,
        "pos_embed_max_size": 24,
    }
    return SD3Transformer2DModel(**{**default, **config})


def sd35() -> nn.Module:
    return sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def flux(**config: Any) -> nn.Module:
    default = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": TEXT,
        "pooled_projection_dim": TEXT,
        "axes_dims_rope": (2, 2, 4),
    }
    return FluxTransformer2DModel(**{**default, **config})


def qwen() -> nn.Module:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT,
        axes_dims_rope=(2, 2, 4),
    )


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "dit": dit,
    "unet": unet,
    "sdxl": sdxl,
    "pixart": pixart,
    "sd3": sd3,
    "sd35": sd35,
    "flux": flux,
    "qwen": qwen,
}


def model(backbone: str, seed: int = 0) -> Any:
    """Build a tiny model in eval mode, with every weight drawn from the seed."""
    return seeded(BACKBONES[backbone], seed)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a model and draw every weight from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make()
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in name and "weight" in name
                nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
            else:
                size = 2.0 if any(marker in name for marker in SHARP) else 1.0
                nn.init.normal_(parameter, std=size / parameter[0].numel() ** 0.5)
    return made.eval()


def inputs(
    backbone: str, height: int = 8, width: int = 8, text: int = 5, batch: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Return arguments of the forward for a picture of height x width tokens.

    Every picture of the batch has a time of its own.
    """
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    times = torch.randint(1, 999, (batch,), generator=rng)
    if backbone == "dit":
        labels = torch.randint(0, 4, (batch,), generator=rng)
        return {
            "hidden_states": draw(batch, 4, height, width),
            "timestep": times,
            "class_labels": labels,
        }
    if backbone in ("unet", "sdxl"):
        kwargs: dict[str, Any] = {"sample": draw(batch, 4, height, width), "timestep": times}
        if backbone == "sdxl":
            pooled = {"text_embeds": draw(batch, TEXT), "time_ids": torch.zeros(batch, 6)}
            kwargs["added_cond_kwargs"] = pooled
        return {**kwargs, "encoder_hidden_states": draw(batch, text, TEXT)}
    if backbone == "pixart":
        return {
            "hidden_states": draw(batch, 4, height, width),
            "timestep": times,
            "encoder_hidden_states": draw(batch, text, TEXT),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    if backbone == "qwen":
        return {
            "hidden_states": draw(batch, height * width, 16),
            "timestep": times / 1000,
            "encoder_hidden_states": draw(batch, text, TEXT),
            "img_shapes": [[(1, height, width)]] * batch,
        }
    kwargs = {
        "encoder_hidden_states": draw(batch, text, TEXT),
        "pooled_projections": draw(batch, TEXT),
    }
    if backbone in ("sd3", "sd35"):
        latents = draw(batch, 4, 2 * height, 2 * width)
        return {"hidden_states": latents, "timestep": times.float(), **kwargs}
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)
    kwargs |= {
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(text, 3),
        "timestep": times / 1000,
    }
    return {"hidden_states": draw(batch, height * width, 16), **kwargs}


def run(made: Any, **kwargs: Any) -> Tensor:
    """Run the forward and return its tensor."""
    return made(**kwargs, return_dict=False)[0]


def sizes(backbone: str) -> list[tuple[int, int]]:
    """Return heights and widths in tokens of the first level; DiT draws squares only."""
    return [(8, 8), (7, 7) if backbone == "dit" else (5, 9)]


def in_double(kwargs: Any) -> Any:
    """Return the arguments of a forward with every floating-point tensor in float64."""
    if isinstance(kwargs, dict):
        return {name: in_double(value) for name, value in kwargs.items()}
    if isinstance(kwargs, Tensor) and kwargs.is_floating_point():
        return kwargs.double()
    return kwargs
