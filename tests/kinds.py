"""Pipelines of every family but DiT (tiny.py), around the tiny models of linattn.testing."""

import copy

import tiny
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from linattn.rehearse import tokenizers
from linattn.testing import models
from linattn.testing.models import JOINT, ROTARY, TEXT, run, seeded, sizes
from linattn.world import language

__all__ = [
    "FAMILIES",
    "JOINT",
    "KINDS",
    "REFUSED",
    "ROTARY",
    "TEXT",
    "inputs",
    "model",
    "pipeline",
    "run",
    "sizes",
]

KINDS = tuple(models.BACKBONES)
# What the table of docs/families.md promises: its rows, and by which kinds or by which refusal
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


def model(kind: str, seed: int = 0) -> nn.Module:
    """Return the tiny model in eval mode, with every weight drawn from the seed."""
    return tiny.model() if kind == "dit" else models.model(kind, seed)


def inputs(
    kind: str, height: int = 8, width: int = 8, text: int = 5, batch: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Return arguments of the forward for height x width tokens, with a time for each sample."""
    if kind == "dit":
        return tiny.inputs(batch, height, seed)
    return models.inputs(kind, height, width, text, batch, seed)


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
    unet = seeded(lambda: models.sdxl(cross_attention_dim=TEXT // 2 + TEXT))
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
        encoders_and_tokenizers = {
            "text_encoder": _clip(),
            "text_encoder_2": t5,
            "tokenizer_2": language.t5_tokenizer(),
        }
        return FluxPipeline(
            **parts, **encoders_and_tokenizers, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0)
        )
    encoders_and_tokenizers = {
        "text_encoder_3": t5,
        "tokenizer_3": language.t5_tokenizer(),
        "tokenizer_2": language.clip_tokenizer(),
    }
    half = CLIPTextModelWithProjection(language.clip_encoder(TEXT // 2, 2, 2).config).eval()
    encoders = {"text_encoder": half, "text_encoder_2": copy.deepcopy(half)}
    return StableDiffusion3Pipeline(
        **parts,
        **encoders_and_tokenizers,
        **encoders,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Read words of the template and of captions as a token each, and all else by bytes."""
    return tokenizers.qwen(language.words())


def _qwen_encoder(words: int) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": TEXT,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": words,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }
    sight = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sight)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_vae() -> AutoencoderKLQwenImage:
    """Factor 4, as tiny.vae, with channels of unlike means and deviations."""
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.3, -0.2, 0.1, 0.4],
        latents_std=[0.8, 1.2, 1.5, 0.9],
    ).eval()


def _qwen_pipeline():
    tokenizer = qwen_tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9)
    encoder = _qwen_encoder(len(tokenizer))
    parts = {"text_encoder": encoder, "tokenizer": tokenizer, "transformer": model("qwen")}
    return QwenImagePipeline(scheduler, qwen_vae(), **parts)


def pipeline(kind: str, guided: bool = False):
    """Return a stock pipeline that reads captions, of a tiny model and tiny encoders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind in ("unet", "sdxl"):
            pipe = _stable(kind == "sdxl")
        elif kind == "pixart":
            pipe = _pixart_pipeline()
        elif kind == "qwen":
            pipe = _qwen_pipeline()
        else:
            pipe = _flow(
                seeded(lambda: models.flux(guidance_embeds=True)) if guided else model(kind)
            )
    pipe.set_progress_bar_config(disable=True)
    return pipe
