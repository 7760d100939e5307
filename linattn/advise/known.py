"""The published models' own shapes: widths, heads, depths and lengths of text, without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """Hold the class and the config of a published model, as its folder has them."""

    title: str  # as its authors call it
    backbone: str  # its class in diffusers
    config: Mapping[str, Any]  # what differs from the defaults of the class


SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
SD21 = {
    **SD15,
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
XL = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
}
DIT = {**XL, "sample_size": 32, "num_embeds_ada_norm": 1000}
PIXART = {**XL, "sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False}
SD35_MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
# Published models by the name that `python -m linattn.advise` takes.
KNOWN = {
    "sd15": Known("SD 1.5", "UNet2DConditionModel", SD15),
    "sd21": Known("SD 2.1", "UNet2DConditionModel", SD21),
    "sdxl": Known("SDXL", "UNet2DConditionModel", SDXL),
    "dit": Known("DiT-XL/2", "DiTTransformer2DModel", DIT),
    "pixart": Known("PixArt-Sigma", "PixArtTransformer2DModel", PIXART),
    "sd35-medium": Known("SD3.5-M", "SD3Transformer2DModel", SD35_MEDIUM),
    "flux": Known("FLUX.1-dev", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "qwen": Known("Qwen-Image", "QwenImageTransformer2DModel", {}),
}
# Tokens of text by class: the longest that diffusers' pipelines encode by default. SD3's are CLIP's
# 77 and T5's 256.
TEXT = {
    "UNet2DConditionModel": 77,
    "DiTTransformer2DModel": 0,
    "PixArtTransformer2DModel": 300,
    "SD3Transformer2DModel": 77 + 256,
    "FluxTransformer2DModel": 512,
    "QwenImageTransformer2DModel": 512,
}
# The pipelines whose default differs from that of others of their class.
SHORTER_TEXT = {"PixArtAlphaPipeline": 120}
