"""Put a published model's parts together in the class of pipeline that its folder names."""

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    PNDMScheduler,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

Parts = Mapping[str, Any]
SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def dit(parts: Parts) -> Any:
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return DiTPipeline(transformer=parts["model"], scheduler=scheduler, **_without_model(parts))


def sd15(parts: Parts) -> Any:
    scheduler = PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1)
    return StableDiffusionPipeline(
        unet=parts["model"],
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_without_model(parts),
    )


def sdxl(parts: Parts) -> Any:
    scheduler = EulerDiscreteScheduler(**SD_BETAS, steps_offset=1, timestep_spacing="leading")
    return StableDiffusionXLPipeline(
        unet=parts["model"], scheduler=scheduler, add_watermarker=False, **_without_model(parts)
    )


def pixart(parts: Parts) -> Any:
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", algorithm_type="dpmsolver++")
    return PixArtSigmaPipeline(
        transformer=parts["model"], scheduler=scheduler, **_without_model(parts)
    )


def sd35(parts: Parts) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        transformer=parts["model"], scheduler=scheduler, **_without_model(parts)
    )


def flux(parts: Parts) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, max_shift=1.15, base_shift=0.5
    )
    return FluxPipeline(transformer=parts["model"], scheduler=scheduler, **_without_model(parts))


def qwen(parts: Parts) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return QwenImagePipeline(
        transformer=parts["model"], scheduler=scheduler, **_without_model(parts)
    )


def _without_model(parts: Parts) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name != "model"}


PIPELINES: dict[str, Callable[[Parts], Any]] = {
    "dit": dit,
    "sd15": sd15,
    "sdxl": sdxl,
    "pixart": pixart,
    "sd35": sd35,
    "flux": flux,
    "qwen": qwen,
}
VAE_SCALES = {  # the published autoencoders' own
    "dit": {"scaling_factor": 0.18215},
    "sd15": {"scaling_factor": 0.18215},
    "sdxl": {"scaling_factor": 0.13025},
    "pixart": {"scaling_factor": 0.13025},
    "sd35": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "qwen": {},  # its config has a mean and a deviation for each channel
}
