"""Know the published models by their shapes alone: classes and configs, and no weights.

The configs are those of the published folders where they differ from the classes' defaults. They
serve the arithmetic of memory and time, the rehearsal, and the tests on the meta device.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLForConditionalGeneration,
    T5EncoderModel,
)

from linattn.names import known

Config = Mapping[str, Any]

SD = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
# BK-SDM-Tiny is SD 1.5 without the innermost level, the middle and the second block of each level.
BK_SDM_TINY = {
    **SD,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 1,
    "mid_block_type": None,
}
SD21 = {
    **SD,
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "num_embeds_ada_norm": 1000,
}
PIXART = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 64,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}
SD35 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX = {"guidance_embeds": True}

CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
QWEN_25_VL = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
DEPTHS = ("num_layers", "num_hidden_layers", "depth")  # what encoders' configs call their blocks
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
VAE_16 = {
    **VAE,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True)
class Shape:
    """Describe a published model, its text encoders and its autoencoder."""

    name: str  # as its users call it
    model: type[nn.Module]
    config: Config
    layers: int  # self-attentions
    first: tuple[int, int, int]  # width, heads and head_dim of the first one
    shallow: Config = field(default_factory=dict)  # what makes it less deep, at the same widths
    encoders: Mapping[str, tuple[type[nn.Module], Config]] = field(default_factory=dict)
    vae: Config = field(default_factory=lambda: VAE)
    side: int = 512  # px that it draws
    vae_model: type[nn.Module] = AutoencoderKL

    def build(self, shallow: bool = False, **changes: Any) -> Any:
        """Build the model with random weights, on torch's current default device."""
        model: Any = self.model
        return model(**{**self.config, **(self.shallow if shallow else {}), **changes})

    def build_encoders(self, depth: int | None = None) -> dict[str, Any]:
        """Build the text encoders by their names in the pipeline, at most `depth` layers deep."""
        built = {}
        for name, (encoder, config) in self.encoders.items():
            made: Any = encoder
            built[name] = made(made.config_class(**_at_most(depth, config)))
        return built

    @property
    def factor(self) -> int:
        """Return the pixels along one side of a latent position; each level halves the side."""
        defaults = inspect.signature(self.vae_model.__init__).parameters
        name = "block_out_channels" if "block_out_channels" in defaults else "dim_mult"
        levels: Any = self.vae.get(name, defaults[name].default)
        return 2 ** (len(levels) - 1)

    def build_vae(self, **changes: Any) -> Any:
        """Build the autoencoder."""
        vae: Any = self.vae_model
        return vae(**{**self.vae, **changes})


def _at_most(depth: int | None, config: Config) -> dict[str, Any]:
    """Return a config, and those inside it, with at most so many blocks; None leaves them all."""
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, Mapping):
            changed[key] = _at_most(depth, value)
        elif depth is not None and key in DEPTHS:
            changed[key] = min(depth, value)
    return changed


SHAPES: dict[str, Shape] = {
    "dit": Shape(
        "DiT-XL/2", DiTTransformer2DModel, DIT, 28, (1152, 16, 72), {"num_layers": 2}, side=256
    ),
    "bk-sdm-tiny": Shape(
        "BK-SDM-Tiny",
        UNet2DConditionModel,
        BK_SDM_TINY,
        9,
        (320, 8, 40),
        encoders={"text_encoder": (CLIPTextModel, CLIP_L)},
    ),
    "sd15": Shape(
        "SD 1.5",
        UNet2DConditionModel,
        SD,
        16,
        (320, 8, 40),
        {"layers_per_block": 1},
        {"text_encoder": (CLIPTextModel, CLIP_L)},
    ),
    "sd21": Shape(
        "SD 2.1", UNet2DConditionModel, SD21, 16, (320, 5, 64), {"layers_per_block": 1}, side=768
    ),
    "sdxl": Shape(
        "SDXL",
        UNet2DConditionModel,
        SDXL,
        70,
        (640, 10, 64),
        {"layers_per_block": 1, "transformer_layers_per_block": 1},
        {
            "text_encoder": (CLIPTextModel, CLIP_L),
            "text_encoder_2": (CLIPTextModelWithProjection, CLIP_G),
        },
        side=1024,
    ),
    "pixart": Shape(
        "PixArt-Sigma",
        PixArtTransformer2DModel,
        PIXART,
        28,
        (1152, 16, 72),
        {"num_layers": 2},
        {"text_encoder": (T5EncoderModel, T5_XXL)},
    ),
    "sd35": Shape(
        "SD3.5-M",
        SD3Transformer2DModel,
        SD35,
        37,
        (1536, 24, 64),
        {"num_layers": 2, "dual_attention_layers": (0,)},
        {
            "text_encoder": (CLIPTextModelWithProjection, CLIP_L),
            "text_encoder_2": (CLIPTextModelWithProjection, CLIP_G),
            "text_encoder_3": (T5EncoderModel, T5_XXL),
        },
        VAE_16,
        1024,
    ),
    "flux": Shape(
        "FLUX.1-dev",
        FluxTransformer2DModel,
        FLUX,
        57,
        (3072, 24, 128),
        {"num_layers": 1, "num_single_layers": 1},
        {"text_encoder": (CLIPTextModel, CLIP_L), "text_encoder_2": (T5EncoderModel, T5_XXL)},
        VAE_16,
        1024,
    ),
    "qwen": Shape(
        "Qwen-Image",
        QwenImageTransformer2DModel,
        {},
        60,
        (3072, 24, 128),
        {"num_layers": 2},
        {"text_encoder": (Qwen2_5_VLForConditionalGeneration, QWEN_25_VL)},
        {},
        1024,
        AutoencoderKLQwenImage,
    ),
}


def shape(name: str) -> Shape:
    """Return a published model's shape by its short name, such as sd15 or flux."""
    return SHAPES[known(name, SHAPES, "model")]


def parameters(module: nn.Module) -> int:
    """Count the numbers in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(made: Any) -> Any:
    """Call a builder on the meta device, where weights take no memory.

    Args:
        made: a function without arguments, such as `shape("flux").build`.
    """
    with torch.device("meta"):
        return made()
