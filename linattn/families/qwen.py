"""Qwen-Image: double blocks alone, with text first as the operators want it.

- Queries and keys have norms and rotary positions, given as complex factors.
- The grid is read from `img_shapes`, (frames, height, width) in tokens for every picture of every
  sample.
- Editing and layered models put several pictures into one sequence, which is no grid. Their class
  is the same, so the call shows it, and the call is refused.
- The stock pipeline pads all texts of a batch to the longest, and a mask marks the padding.
  Operators take no mask, because a linear read sums over all tokens. Padding is therefore refused,
  and a batch runs in groups of texts of one length, each without padding. The empty prompt is such
  a group too, beside the prompts that it guides, and in the place of dropped ones.
- A text's positions do not depend on the length of others, so that groups give what the mask gives.
- Guidance is rescaled, cell by cell, to the length of the prediction for the prompts.
- The autoencoder is a video's: its latents have frames, of which a picture has one, and a mean and
  a deviation for each channel.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.families.base import SERVED, TEXT, Context, Family, Gridless, Model, Slot, required
from linattn.families.captions import Captions
from linattn.families.conditions import Conditioning, Prompts, cast, taken
from linattn.families.flow import Packed, packed, set_times, unpacked
from linattn.families.processors import JointAttention, refuse_padding

SIDE = 64  # Qwen-Image's tokens a side at 1,024 px
STATES, MASK = "encoder_hidden_states", "encoder_hidden_states_mask"
# The negative prompt of the model's own examples; the pipeline guides only where it has one.
EMPTY = " "


class PaddedCaptions(Packed, Captions):
    """Condition Qwen-Image on captions as tokens of the self-attention, with their mask."""

    def defaults(self) -> dict[str, Any]:
        """Return the pipeline's default steps, and its scale of guidance by a negative prompt."""
        return {"steps": self._default("num_inference_steps"), "guidance": self._cfg_scale}

    @property
    def _cfg_scale(self) -> float:
        return self._default("true_cfg_scale")

    def _default(self, name: str) -> Any:
        return inspect.signature(type(self.pipe).__call__).parameters[name].default

    def length_kwargs(self) -> dict[str, Any]:
        """Return the length of the text, which is shorter in the pipeline's call by default."""
        length = self.card.get("text_length", self._default("max_sequence_length"))
        return {"max_sequence_length": length}

    def encode(self, prompts: Prompts) -> Conditioning:
        states, mask = self.pipe.encode_prompt(
            self.check(prompts), self.device, **self.length_kwargs()
        )
        mask = states.new_ones(states.shape[:2]) if mask is None else mask
        return {STATES: states, MASK: mask.bool()}

    def nothing(self) -> Conditioning:
        return self.encode([EMPTY])

    def groups(self, conditioning: Conditioning) -> list[Any]:
        """Return the pictures whose texts have one length, as indices of the batch.

        The first picture is in the first group.
        """
        lengths = conditioning[MASK].sum(1)
        in_order = dict.fromkeys(lengths.tolist())
        if len(in_order) == 1:
            return [slice(None)]
        return [(lengths == length).nonzero().flatten() for length in in_order]

    def call(
        self, model: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Run the model on noisy latents, once for each length of text."""
        groups = self.groups(conditioning)
        if len(groups) == 1:
            return super().call(model, noisy, t, conditioning)
        outputs = []
        for indices in groups:
            one_length = taken(conditioning, indices)
            outputs.append(super().call(model, noisy[indices], t[indices], one_length))
        return torch.cat(outputs)[torch.cat(groups).argsort()]

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        refuse_lengths(conditioning[MASK])
        height, width = (side // 2 for side in noisy.shape[-2:])
        text = conditioning[STATES][:, : int(conditioning[MASK][0].sum())]
        return {
            "hidden_states": packed(noisy),
            "timestep": t.to(noisy.dtype) / 1000,
            "img_shapes": [[(1, height, width)]] * len(noisy),
            **cast({STATES: text}, noisy.dtype),
        }

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        return unpacked(output, like)

    def guided(self, conditional: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """Lead a prediction away from the empty prompt's, and keep the length of every token."""
        prompted, combined = (
            packed(conditional),
            packed(super().guided(conditional, empty, guidance)),
        )
        length = torch.linalg.vector_norm(prompted, dim=-1, keepdim=True)
        scaled = combined * (length / torch.linalg.vector_norm(combined, dim=-1, keepdim=True))
        return unpacked(scaled, conditional)

    @staticmethod
    def least_steps(scheduler: Mapping[str, Any]) -> int:
        """Return 2 where the times are stretched to end at `shift_terminal`, which one cannot."""
        return 2 if scheduler.get("shift_terminal") else 1

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        last = scheduler.config.get("shift_terminal")
        if steps < self.least_steps(scheduler.config):
            raise ValueError(
                f"{steps} step; the scheduler stretches its times to end at shift_terminal={last}, "
                "which takes 2 steps or more"
            )
        set_times(scheduler, steps, like)

    @staticmethod
    def factor(config: Mapping[str, Any]) -> int:
        return 2 ** len(config["temperal_downsample"])

    def pictures(self, latents: Tensor, vae: Any) -> Tensor:
        return super().pictures(latents.unsqueeze(2), vae).squeeze(2)

    def means(self, pictures: Tensor, vae: Any) -> Tensor:
        return super().means(pictures.unsqueeze(2), vae).squeeze(2)

    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        mean, deviation = channel_statistics(latents, vae)
        return latents / (1 / deviation) + mean  # the pipeline's own order of rounding

    def scaled(self, latents: Tensor, vae: Any) -> Tensor:
        mean, deviation = channel_statistics(latents, vae)
        return (latents - mean) * (1 / deviation)


class QwenImage(Family):
    backbone = "Qwen-Image"
    models = "Qwen-Image"
    conditions = PaddedCaptions
    prompt_tokens = 512
    packs = True
    times = 1
    handed_down = "attention_kwargs"
    rotates = True

    def attentions(self, model: Model) -> Iterator[Slot]:
        for index, block in enumerate(model.transformer_blocks):
            yield Slot(f"transformer_blocks.{index}.attn", block.attn, JointAttention)

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        sample = required(model, arguments, self.sample)  # (batch, tokens, channels)
        height, width = sides(arguments.get("img_shapes"), sample.shape[1])
        return Grid(height, width, required(model, arguments, "encoder_hidden_states").shape[1])

    def context(self, model: Model, arguments: Mapping[str, Any]) -> Context:
        # Padding is refused here and not in `grid`, which a caller who knows the grid spares.
        refuse_padding(arguments.get("encoder_hidden_states_mask"))
        return super().context(model, arguments)

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        side = SIDE if side is None else side
        config, weight = model.config, next(model.parameters())
        return {
            "hidden_states": weight.new_zeros(batch, side * side, config.in_channels),
            "encoder_hidden_states": weight.new_zeros(batch, TEXT, config.joint_attention_dim),
            "timestep": weight.new_full((batch,), noise),
            "img_shapes": [[(1, side, side)]] * batch,
        }


def channel_statistics(latents: Tensor, vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the latents' channels, as wide as the latents."""
    shape = (-1, *[1] * (latents.ndim - 2))
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, deviation = (latents.new_tensor(values).view(shape) for values in statistics)
    return mean, deviation


def refuse_lengths(mask: Tensor) -> None:
    """Raise a ValueError for texts of unequal lengths, whose mask is (batch, tokens)."""
    lengths = mask.sum(1).tolist()
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the texts have {lengths} tokens, and one forward of Qwen-Image takes texts of one "
            "length: call it once for each of `groups`, as `call` does"
        )


def sides(shapes: Any, tokens: int) -> tuple[int, int]:
    """Return (height, width) in tokens of the one picture in `img_shapes`, alike in all samples."""
    if not shapes or not all(shapes):
        raise ValueError(
            f"img_shapes is {shapes!r}, so the grid is not known: pass [[(1, height, width)]] * "
            "batch"
        )
    samples = [_pictures(sample) for sample in (shapes if isinstance(shapes, list) else [shapes])]
    first = samples[0]
    if any(sample != first for sample in samples):
        raise ValueError(
            f"img_shapes tell of samples of different sizes, {samples}: call the model once for "
            "each size"
        )
    if len(first) != 1 or first[0][0] != 1:
        raise Gridless(
            f"img_shapes tell of {len(first)} pictures a sample, {first}: one picture of one frame "
            "is a grid; reference pictures, layers and frames in the same sequence, as of "
            f"Qwen-Image-Edit, are not supported: {SERVED}"
        )
    _, height, width = first[0]
    if height * width != tokens:
        raise ValueError(
            f"{tokens} picture tokens, but img_shapes tell of a picture of {height} x {width} "
            "tokens"
        )
    return height, width


def _pictures(sample: Any) -> list[tuple[int, int, int]]:
    """Return a sample's pictures; diffusers also takes one picture without a list around it."""
    if isinstance(sample[0], (list, tuple)):
        return [tuple(picture) for picture in sample]
    return [tuple(sample)]
