"""Train the small teachers' autoencoder from scratch: 64 px pictures become 16 x 16 latents.

- It is an `AutoencoderKL`, because every diffusers pipeline declares one.
- The latents' mean and deviation are folded into its two 1 x 1 convolutions after training. So
  scaling_factor is 1 and shift_factor 0; some pipelines ignore the shift, others crash without it.
- Half of the steps take pictures of 32 px, so that a teacher can begin on 8 x 8 latents.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from linattn import world
from linattn.checkpoint import Resumable
from linattn.seeds import of_step


def build(factor: int = 4, latent_channels: int = 4) -> AutoencoderKL:
    """Return an untrained autoencoder whose latents have 1/factor of a picture's side."""
    widths = (16, 32, 64, 64)[: factor.bit_length()]
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )


def pictures(scenes: list[world.Scene], side: int) -> Tensor:
    """Render scenes as the autoencoder takes them: (batch, 3, side, side) in [-1, 1]."""
    return world.render(scenes, side) * 2 - 1


def loss(vae: AutoencoderKL, picture: Tensor, noise: Tensor) -> Tensor:
    """Return the error of the decoded pictures, plus a little of the latents' divergence."""
    posterior = vae.encode(picture).latent_dist
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = F.l1_loss(decoded, picture) + 2 * F.mse_loss(decoded, picture)
    divergence = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean() / 2
    return error + 2e-4 * divergence


def train(
    scratch: Path,
    *,
    steps: int,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    **shape: int,
) -> AutoencoderKL:
    """Train an autoencoder of `shape`, the arguments of `build`, and fold its latents' scale in."""
    torch.manual_seed(seed)
    vae = build(**shape).to(device)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    recipe = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed, **shape}
    state = {"vae": vae, "optimizer": optimizer, "schedule": schedule}
    for step in Resumable(scratch / "autoencoder.safetensors", state, steps, recipe):
        side = 64 if step % 2 else 32
        count = batch * (64 // side)
        picture = pictures(world.scenes(count, seed, start=step * 2 * batch), side)
        picture = picture.to(device)
        latent_side = side // 2 ** (len(vae.config.block_out_channels) - 1)
        latent_shape = (count, vae.config.latent_channels, latent_side, latent_side)
        noise = torch.randn(latent_shape, generator=of_step(seed, step))
        with torch.autocast(device, torch.bfloat16):
            value = loss(vae, picture, noise.to(device))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"autoencoder step {step + 1}/{steps} loss {value.item():.4f}", flush=True)
    fold(vae, seed)
    return vae.eval()


@torch.no_grad()
def fold(vae: AutoencoderKL, seed: int = 0, count: int = 2048) -> None:
    """Give each channel of the world's latents mean 0 and variance 1; decoding stays the same."""
    means, device = [], vae.device
    for start in range(0, count, 256):
        picture = pictures(world.scenes(min(256, count - start), seed, start=start), 64).to(device)
        means.append(vae.encode(picture).latent_dist.mean)
    latents = torch.cat(means).double()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    encoder, decoder = vae.quant_conv, vae.post_quant_conv
    weight, bias = encoder.weight.double(), encoder.bias.double()
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()  # the log-variance rows
    encoder.weight.copy_(weight)
    encoder.bias.copy_(bias)
    kernel = decoder.weight.double()
    decoder.bias.copy_(decoder.bias.double() + torch.einsum("oikl,i->o", kernel, mean))
    decoder.weight.copy_(kernel * std[None, :, None, None])


@torch.no_grad()
def psnr(vae: AutoencoderKL, side: int = 64, count: int = 256) -> float:
    """Return the mean PSNR of held-out pictures, in dB."""
    picture = pictures(world.scenes(count, seed=1, start=world.HELD_OUT), side).to(vae.device)
    decoded = vae.decode(vae.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
    errors = F.mse_loss(decoded, picture, reduction="none").mean((1, 2, 3))
    return (10 * torch.log10(4 / errors)).mean().item()
