"""Published models at widths that a test can carry: the same classes, parts and files."""

import contextlib
import dataclasses
from collections.abc import Generator

import pytest

from linattn import shapes

WIDTH = 64
CLIP = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2, "projection_dim": WIDTH}
HALF_CLIP = {**CLIP, "hidden_size": WIDTH // 2, "projection_dim": WIDTH // 2}  # two are one width
T5 = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
QWEN_25_VL = {
    "text_config": {
        "vocab_size": 1024,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2, 3, 3],
        },
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    },
}
HEADS = {"num_attention_heads": 4, "attention_head_dim": 16}
ROTARY = {**HEADS, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": WIDTH}
UNET = {"sample_size": 8, "attention_head_dim": 4}  # heads, as the class calls them
CONFIGS = {
    "dit": {**HEADS, "num_layers": 2, "sample_size": 8},
    "sd15": {**UNET, "block_out_channels": (32, 32, 64, 64), "cross_attention_dim": WIDTH},
    "sdxl": {
        **UNET,
        "block_out_channels": (32, 32, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2 * WIDTH,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    },
    "pixart": {
        **HEADS,
        "cross_attention_dim": WIDTH,
        "caption_channels": WIDTH,
        "num_layers": 2,
        "sample_size": 8,
    },
    "sd35": {
        **HEADS,
        "sample_size": 8,
        "num_layers": 2,
        "caption_projection_dim": WIDTH,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "pos_embed_max_size": 24,
        "dual_attention_layers": (0,),
    },
    "flux": {**ROTARY, "pooled_projection_dim": WIDTH, "num_layers": 1, "num_single_layers": 1},
    "qwen": {**ROTARY, "num_layers": 2},
}
ENCODERS = {
    "sd15": {"text_encoder": CLIP},
    "sdxl": {"text_encoder": CLIP, "text_encoder_2": CLIP},
    "pixart": {"text_encoder": T5},
    "sd35": {"text_encoder": HALF_CLIP, "text_encoder_2": HALF_CLIP, "text_encoder_3": T5},
    "flux": {"text_encoder": CLIP, "text_encoder_2": T5},
    "qwen": {"text_encoder": QWEN_25_VL},
}
VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
VAES = {"qwen": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}}


def shape(name: str) -> shapes.Shape:
    """Return a published model's shape at narrow widths."""
    published = shapes.shape(name)
    encoders = {
        part: (encoder, {**config, **ENCODERS[name][part]})
        for part, (encoder, config) in published.encoders.items()
    }
    return dataclasses.replace(
        published,
        config={**published.config, **CONFIGS[name]},
        shallow={},
        encoders=encoders,
        vae={**published.vae, **VAES.get(name, VAE)},
    )


@contextlib.contextmanager
def shapes_of(*names: str) -> Generator[None]:
    """Let a rehearsal write these models narrow meanwhile."""
    narrow = {name: shape(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        for name, changed in narrow.items():
            patch.setitem(shapes.SHAPES, name, changed)
        yield
