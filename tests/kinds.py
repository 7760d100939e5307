"""Tiny random models of every family but DiT (tiny.py), and arguments of their forwards at any
size.
"""

import copy
from collections.abc import Callable

import tiny
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from linattn.world import language

TEXT = 16  # width of the text


def _unet(**more) -> UNet2DConditionModel:
    options = {
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
    return UNet2DConditionModel(**{**options, **more})


def _sdxl(**more) -> UNet2DConditionModel:
    """No attention at the first level, two transformer blocks at the second, pooled text and sizes."""
    return _unet(
        **more,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT,
    )


def _pixart(**more) -> PixArtTransformer2DModel:
    options = {
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
    return PixArtTransformer2DModel(**{**options, **more})


def _sd3(**more) -> SD3Transformer2DModel:
    options = {
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
    return SD3Transformer2DModel(**{**options, **more})


def _sd35() -> SD3Transformer2DModel:
    return _sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def _flux(**more) -> FluxTransformer2DModel:
    options = {
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
    return FluxTransformer2DModel(**{**options, **more})


def _qwen() -> QwenImageTransformer2DModel:
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


MADE = {
    "unet": _unet,
    "sdxl": _sdxl,
    "pixart": _pixart,
    "sd3": _sd3,
    "sd35": _sd35,
    "flux": _flux,
    "qwen": _qwen,
}
KINDS = ("dit", *MADE)
# What the README's table of families promises: its rows, and by which kinds or by which refusal
# they are tested.
FAMILIES = {
    "DiT": ("dit",),
    "PixArt alpha, Sigma": ("pixart",),
    "SD 1.5, 2.1, SDXL": ("unet", "sdxl"),
    "SD3, SD3.5": ("sd3", "sd35"),
    "FLUX.1": ("flux",),
    "Qwen-Image": ("qwen",),
}
REFUSED = {"Sana": "SanaTransformer2DModel", "Z-Image": "ZImageTransformer2DModel"}
JOINT = ("sd3", "sd35", "flux", "qwen")
ROTARY = ("flux", "qwen")


def model(kind: str, seed: int = 0) -> nn.Module:
    """In eval mode, every weight drawn from the seed: what starts at zero would be silent."""
    return tiny.model() if kind == "dit" else _seeded(MADE[kind], seed)


def _seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make()
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
            else:
                sharp = (
                    2.0
                    if any(part in name for part in ("to_q.", "to_k.", "add_q", "add_k"))
                    else 1.0
                )
                nn.init.normal_(parameter, std=sharp / parameter[0].numel() ** 0.5)
    return made.eval()


def _clip(projected: bool = False) -> CLIPTextModel:
    plain = language.clip_encoder(TEXT, 2, 2)
    return CLIPTextModelWithProjection(plain.config).eval() if projected else plain


def _stable(sdxl: bool = False):
    steps = {"beta_schedule": "linear", "timestep_spacing": "trailing", "steps_offset": 1}
    scheduler = DPMSolverMultistepScheduler(**steps, prediction_type="v_prediction")
    parts = {"vae": tiny.vae(), "scheduler": scheduler, "tokenizer": language.clip_tokenizer()}
    if not sdxl:
        parts |= {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        return StableDiffusionPipeline(**parts, unet=model("unet"), text_encoder=_clip())
    first, second = language.clip_encoder(TEXT // 2, 2, 2), _clip(projected=True)
    unet = _seeded(lambda: _sdxl(cross_attention_dim=TEXT // 2 + TEXT))
    parts |= {
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer_2": language.clip_tokenizer(),
    }
    return StableDiffusionXLPipeline(**parts, unet=unet, add_watermarker=False)


def _pixart_pipeline():
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", timestep_spacing="trailing")
    t5 = {"tokenizer": language.t5_tokenizer(), "text_encoder": language.t5_encoder(TEXT, 1, 2)}
    return PixArtSigmaPipeline(
        **t5, vae=tiny.vae(), transformer=model("pixart"), scheduler=scheduler
    )


def _flow(made: nn.Module):
    t5 = language.t5_encoder(TEXT, 1, 2)
    parts = {"vae": tiny.vae(), "transformer": made, "tokenizer": language.clip_tokenizer()}
    if isinstance(made, FluxTransformer2DModel):
        own = {
            "text_encoder": _clip(),
            "text_encoder_2": t5,
            "tokenizer_2": language.t5_tokenizer(),
        }
        return FluxPipeline(**parts, **own, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0))
    own = {
        "text_encoder_3": t5,
        "tokenizer_3": language.t5_tokenizer(),
        "tokenizer_2": language.clip_tokenizer(),
    }
    half = CLIPTextModelWithProjection(language.clip_encoder(TEXT // 2, 2, 2).config).eval()
    encoders = {"text_encoder": half, "text_encoder_2": copy.deepcopy(half)}
    return StableDiffusion3Pipeline(
        **parts, **own, **encoders, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)
    )


def pipeline(kind: str, guided: bool = False):
    """A stock pipeline of a family that reads captions: the tiny model, the world's words, tiny
    encoders.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind in ("unet", "sdxl"):
            pipe = _stable(kind == "sdxl")
        elif kind == "pixart":
            pipe = _pixart_pipeline()
        else:
            pipe = _flow(_seeded(lambda: _flux(guidance_embeds=True)) if guided else model(kind))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(
    kind: str, height: int = 8, width: int = 8, text: int = 5, batch: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Arguments of the forward for a picture of height x width tokens, a time of its own for every
    sample.
    """
    dice = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice)

    times = torch.randint(1, 999, (batch,), generator=dice)
    if kind == "dit":
        return tiny.inputs(batch, height, seed)
    if kind in ("unet", "sdxl"):
        given = {"sample": draw(batch, 4, height, width), "timestep": times}
        pooled = {"text_embeds": draw(batch, TEXT), "time_ids": torch.zeros(batch, 6)}
        more = {"added_cond_kwargs": pooled} if kind == "sdxl" else {}
        return {**given, "encoder_hidden_states": draw(batch, text, TEXT), **more}
    if kind == "pixart":
        given = {"hidden_states": draw(batch, 4, height, width), "timestep": times}
        sizes = {"resolution": None, "aspect_ratio": None}
        return {
            **given,
            "encoder_hidden_states": draw(batch, text, TEXT),
            "added_cond_kwargs": sizes,
        }
    if kind == "qwen":
        given = {"hidden_states": draw(batch, height * width, 16), "timestep": times / 1000}
        shapes = {"img_shapes": [[(1, height, width)]] * batch}
        return {**given, "encoder_hidden_states": draw(batch, text, TEXT), **shapes}
    given = {
        "encoder_hidden_states": draw(batch, text, TEXT),
        "pooled_projections": draw(batch, TEXT),
    }
    if kind in ("sd3", "sd35"):
        return {
            "hidden_states": draw(batch, 4, 2 * height, 2 * width),
            "timestep": times.float(),
            **given,
        }
    ids = torch.zeros(height, width, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)
    given |= {
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(text, 3),
        "timestep": times / 1000,
    }
    return {"hidden_states": draw(batch, height * width, 16), **given}


def run(made: nn.Module, **arguments: Tensor) -> Tensor:
    return made(**arguments, return_dict=False)[0]


def sizes(kind: str) -> list[tuple[int, int]]:
    """In tokens of the first level, the last one odd; DiT draws squares only."""
    return [(8, 8), (7, 7) if kind == "dit" else (5, 9)]
