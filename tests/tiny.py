"""Tiny random DiT pipelines, built in memory in milliseconds: what the tests convert, save and draw
with.

- Real diffusers classes throughout: a DiTPipeline's class table has 1,001 rows however small the
  rest is.
- Every weight is drawn from the seed, the zero-initialised ones too, so that no layer is silent.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)
from torch import Tensor

LABELS = ("red disc", "red ring", "blue disc", "blue ring")


def model(
    width: int = 32, heads: int = 4, layers: int = 2, side: int = 8, patch: int = 1, seed: int = 0
) -> DiTTransformer2DModel:
    """A DiT in eval mode; `side` is of its latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=4,
            out_channels=8,
            num_layers=layers,
            sample_size=side,
            patch_size=patch,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
        for name, parameter in dit.named_parameters():
            sharp = (
                3.0 if ".to_q." in name or ".to_k." in name else 1.0
            )  # attention that is far from a mean
            torch.nn.init.normal_(parameter, std=sharp / parameter.shape[-1] ** 0.5)
    return dit.eval()


def vae(seed: int = 0) -> AutoencoderKL:
    """Factor 4: latents of 8 x 8 are pictures of 32 x 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=32,
            scaling_factor=1.0,
            shift_factor=0.0,
            force_upcast=False,
        ).eval()


def pipeline(scheduler: str = "dpm", **shape) -> DiTPipeline:
    kinds = {"dpm": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}
    options = {
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    if scheduler == "ddim":
        options["clip_sample"] = False
    names = dict(enumerate(LABELS))
    pipe = DiTPipeline(model(**shape), vae(), kinds[scheduler](**options), id2label=names)
    pipe.register_to_config(id2label=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(
    batch: int = 2, side: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Arguments of the model's forward, with a different time for every sample."""
    dice = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, side, side, generator=dice).to(dtype),
        "timestep": torch.randint(0, 1000, (batch,), generator=dice),
        "class_labels": torch.randint(0, len(LABELS), (batch,), generator=dice),
    }


def run(dit: torch.nn.Module, **arguments: Tensor) -> Tensor:
    return dit(**(arguments or inputs()), return_dict=False)[0]
