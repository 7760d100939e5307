"""Turn prompts into arguments of a model's forward, and the model's output back into latents.

- Prompts are a tensor of labels (DiT) or a list of captions, one a picture.
- Conditioning is a dictionary of tensors by the forward's own argument names, with one row a
  picture. Code that knows no family can therefore join, repeat and drop it.
- Latents are (batch, channels, height, width) outside a family's file; FLUX packs 2 x 2 of them
  into a token.
- Times are the scheduler's, up to 1,000; FLUX's model takes a thousandth of them.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prompts = Tensor | Sequence[str]  # labels or captions
Conditioning = dict[str, Tensor]  # tensors by argument name, one row a picture


class Conditions:
    """Hold the conditioning of one family's pipeline.

    Subclasses differ in their prompts and in how they call the model.
    """

    latent_argument = "hidden_states"  # the forward's argument for the noisy latents

    def __init__(self, pipe: Any, card: Mapping[str, Any]):
        self.pipe, self.card = pipe, card

    @property
    def model(self) -> nn.Module:
        return denoiser(self.pipe)

    @property
    def config(self) -> Any:
        """Return the model's config, which torch's types take for a tensor."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def channels(self) -> int:
        return self.config.in_channels

    @property
    def divisor(self) -> int:
        """Return the number of latent positions that must divide a side."""
        return self.config.patch_size

    @property
    def side(self) -> int:
        """Return the side of the latents that the model was trained at."""
        return self.config.sample_size

    @property
    def embeds_guidance(self) -> bool:
        """Say whether the guidance is an argument of the forward, so that one forward is enough."""
        return False

    def defaults(self) -> dict[str, Any]:
        """Return the default steps and guidance of the pipeline's own call."""
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        return {
            "steps": parameters["num_inference_steps"].default,
            "guidance": parameters["guidance_scale"].default,
        }

    def check(self, prompts: Any) -> Prompts:
        """Return the prompts in the form that `encode` takes, or raise a ValueError."""
        raise NotImplementedError

    def words(self, prompts: Prompts) -> list[str]:
        """Return the prompts as text for a reader."""
        raise NotImplementedError

    def encode(self, prompts: Prompts) -> Conditioning:
        """Encode the prompts as conditioning."""
        raise NotImplementedError

    def nothing(self) -> Conditioning:
        """Return the conditioning of one empty prompt.

        Guidance leads away from it, and training puts it in the place of dropped prompts.
        """
        raise NotImplementedError

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the arguments of the model's forward."""
        return {self.latent_argument: noisy, "timestep": t, **cast(conditioning, noisy.dtype)}

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        """Return the model's output as (batch, channels or twice as many, height, width)."""
        return output

    def groups(self, conditioning: Conditioning) -> list[Any]:
        """Return which pictures one forward takes together, as indices of the batch.

        All of them, but in a family whose texts have lengths of their own.
        """
        return [slice(None)]

    def call(
        self, model: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Run the model on noisy latents, and return its output as latents."""
        kwargs = self.arguments(noisy, t, conditioning)
        output = model(kwargs.pop(self.latent_argument), **kwargs, return_dict=False)[0]
        return self.latents(output, noisy)

    @torch.no_grad()
    def example(
        self, height: int, width: int, prompts: Prompts, noise: float = 0.5
    ) -> dict[str, Any]:
        """Return arguments of a forward for latents of this size, on which costs are counted."""
        weight = next(self.model.parameters())
        noisy = weight.new_zeros(len(prompts), self.channels, height, width)
        t = torch.full((len(prompts),), min(999, round(noise * 1000)), device=weight.device)
        return self.arguments(noisy, t, self.encode(prompts))

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Return the pipeline's text encoders."""
        components = self.pipe.components.items()
        return [module for name, module in components if name.startswith("text_encoder") and module]

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        """Set the scheduler's times for latents of this shape and device."""
        scheduler.set_timesteps(steps, device=like.device)

    @staticmethod
    def least_steps(scheduler: Mapping[str, Any]) -> int:
        """Return the fewest steps of a draw, by the scheduler's config."""
        return 1

    def guided(self, conditional: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """Lead a prediction for the prompts away from one for the empty prompt."""
        return empty + guidance * (conditional - empty)

    @staticmethod
    def factor(config: Mapping[str, Any]) -> int:
        """Return the number of pixels along one side of a latent position, by the VAE's config."""
        return 2 ** (len(config["block_out_channels"]) - 1)

    def pictures(self, latents: Tensor, vae: Any) -> Tensor:
        """Decode latents as the model draws them to pictures in [-1, 1]."""
        return vae.decode(self.unscaled(latents, vae)).sample

    def means(self, pictures: Tensor, vae: Any) -> Tensor:
        """Encode pictures in [-1, 1] to the posterior's mean, at the encoder's scale."""
        return vae.encode(pictures).latent_dist.mean

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        """Return latents at the decoder's scale.

        DiT's, SD's and PixArt's pipelines have a scaling factor and no shift.
        """
        return latents / vae.config.scaling_factor

    def scaled(self, latents: Tensor, vae: Any) -> Tensor:
        """Return the encoder's latents at the scale of the model."""
        return latents * vae.config.scaling_factor


def denoiser(pipe: Any) -> nn.Module:
    """Return a pipeline's denoising model."""
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if model is None:
        raise ValueError(f"{type(pipe).__name__} has no denoising model")
    return model


def cast(conditioning: Conditioning, dtype: torch.dtype) -> Conditioning:
    """Cast the floating-point tensors of a conditioning."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in conditioning.items()
    }


def joined(first: Conditioning, second: Conditioning) -> Conditioning:
    """Concatenate two conditionings along the batch."""
    return {name: torch.cat(as_long(tensor, second[name])) for name, tensor in first.items()}


def repeated(single: Conditioning, count: int) -> Conditioning:
    """Repeat a conditioning of one row `count` times."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in single.items()}


def dropped(conditioning: Conditioning, empty: Conditioning, mask: Tensor) -> Conditioning:
    """Replace the rows that `mask` (batch,) marks by the empty conditioning."""
    replaced = {}
    for name, tensor in conditioning.items():
        broadcast = mask.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        replaced[name] = torch.where(broadcast, *as_long(empty[name], tensor))
    return replaced


def taken(conditioning: Conditioning, indices: Any) -> Conditioning:
    """Take the pictures with these indices out of a conditioning."""
    return {name: tensor[indices] for name, tensor in conditioning.items()}


def as_long(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Make two texts (batch, tokens, ...) as long as the longer one, by zeros at their ends.

    In a mask of the tokens that are read, a zero is padding.
    """
    if first.ndim < 2 or first.shape[1] == second.shape[1]:
        return first, second
    longest = max(first.shape[1], second.shape[1])
    return _padded(first, longest), _padded(second, longest)


def _padded(text: Tensor, longest: int) -> Tensor:
    return F.pad(text, (*[0, 0] * (text.ndim - 2), 0, longest - text.shape[1]))
