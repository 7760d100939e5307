"""PixArt alpha and Sigma: DiT's blocks on any rectangle, with T5's text by cross-attention."""

from typing import Any

from torch import Tensor

from linattn.families.base import TEXT, Model, latents, timesteps
from linattn.families.captions import Captions
from linattn.families.conditions import Conditioning, Prompts
from linattn.families.dit import DiT


class MaskedCaptions(Captions):
    """Condition PixArt on T5's states and their mask.

    The second half of the model's output is a variance.
    """

    def encode(self, prompts: Prompts) -> Conditioning:
        states, mask, *_ = self.pipe.encode_prompt(
            self.check(prompts),
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=False,
            **self.length_kwargs(),
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        sizes = self._sizes(noisy) if takes_sizes(self.model) else no_sizes()
        return {**super().arguments(noisy, t, conditioning), "added_cond_kwargs": sizes}

    def _sizes(self, noisy: Tensor) -> dict[str, Tensor]:
        """Return the picture's size and aspect ratio, one row a picture."""
        height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        return {
            "resolution": noisy.new_tensor([height, width]).expand(len(noisy), 2),
            "aspect_ratio": noisy.new_tensor([height / width]).expand(len(noisy), 1),
        }


class PixArt(DiT):
    backbone = "PixArt"
    models = "PixArt alpha, Sigma"
    conditions = MaskedCaptions
    prompt_tokens = 300
    squares_only = False

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        sample = latents(model, side, batch, model.config.patch_size)
        ones = {"resolution": sample.new_ones(batch, 2), "aspect_ratio": sample.new_ones(batch, 1)}
        return {
            "hidden_states": sample,
            "timestep": timesteps(noise, batch, sample.device),
            "encoder_hidden_states": sample.new_zeros(batch, TEXT, model.config.caption_channels),
            "added_cond_kwargs": ones if takes_sizes(model) else no_sizes(),
        }


def takes_sizes(model: Model) -> bool:
    """Say whether the model is conditioned on the picture's size: the 1,024 px ones of alpha are.

    Where the config is silent, the model itself decides by its sample size.
    """
    return model.use_additional_conditions


def no_sizes() -> dict[str, None]:
    """Return the sizes for a model that is not conditioned on them: the argument is required."""
    return {"resolution": None, "aspect_ratio": None}
