"""FLUX: double blocks, where text has weights of its own, then single blocks on one sequence.

- Queries and keys have norms and rotary positions.
- The grid is read from `img_ids`, whose rows are (0, row, column). The width is the number of ids
  whose first two entries equal the first id's. Counting is right in bf16 as well, where ids above
  256 merge and the largest id is off.
- Counting waits for the GPU once a call. A caller who knows the grid hands it down, a `Grid` or a
  whole `Context`, and spares it; torch.export and torch.compile(fullgraph=True) need that.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from linattn.attention.grid import Grid
from linattn.families.base import SERVED, TEXT, Family, Gridless, Model, Slot, required
from linattn.families.conditions import Conditioning, Prompts, cast
from linattn.families.flow import FlowCaptions, Packed, packed, set_times, unpacked
from linattn.families.processors import JointAttention

UNTRACED = (
    "FLUX's grid is counted from the values of img_ids, which a graph cannot hold: hand it down, "
    "joint_attention_kwargs={'linattn': linattn.Grid(height, width, text)}, in tokens"
)
SIDE = 64  # tokens a side of FLUX.1 at 1,024 px
# No config holds the size that FLUX was trained at. A model with FLUX.1's heads is FLUX.1 or was
# cut from it, and was trained with 512 tokens of text and 64 x 64 of the picture.
FLUX_1_HEADS, FLUX_1_HEAD_DIM, FLUX_1_TOKENS = 24, 128, 512 + SIDE**2


class JointCaptions(Packed, FlowCaptions):
    """Condition FLUX on captions: T5 gives tokens beside the picture's, CLIP a vector."""

    def defaults(self) -> dict[str, Any]:
        """Return the pipeline's default steps and guidance.

        Without a guidance embedding (schnell) the default guidance is 1, because real CFG needs a
        second forward.
        """
        defaults = super().defaults()
        return defaults if self.embeds_guidance else {**defaults, "guidance": 1.0}

    @property
    def embeds_guidance(self) -> bool:
        return self.config.guidance_embeds

    def encode(self, prompts: Prompts) -> Conditioning:
        states, pooled, _ = self.pipe.encode_prompt(
            self.check(prompts), None, self.device, 1, **self.length_kwargs()
        )
        conditioning = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if self.embeds_guidance:
            guidance = float(self.card.get("guidance", 3.5))
            conditioning["guidance"] = pooled.new_full((len(pooled),), guidance)
        return conditioning

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        height, width = (side // 2 for side in noisy.shape[-2:])
        text = conditioning["encoder_hidden_states"].shape[1]
        return {
            "hidden_states": packed(noisy),
            "timestep": t.to(noisy.dtype) / 1000,
            "img_ids": positions(height, width, noisy.device),
            "txt_ids": torch.zeros(text, 3, device=noisy.device),
            **cast(conditioning, noisy.dtype),
        }

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        return unpacked(output, like)

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        set_times(scheduler, steps, like)


class Flux(Family):
    backbone = "FLUX"
    models = "FLUX.1"
    conditions = JointCaptions
    prompt_tokens = 512
    packs = True
    times = 1
    handed_down = "joint_attention_kwargs"
    rotates = True

    def attentions(self, model: Model) -> Iterator[Slot]:
        trained = trained_tokens(model)
        for index, block in enumerate(model.transformer_blocks):
            yield Slot(f"transformer_blocks.{index}.attn", block.attn, JointAttention, trained)
        for index, block in enumerate(model.single_transformer_blocks):
            name = f"single_transformer_blocks.{index}.attn"
            yield Slot(name, block.attn, JointAttention, trained)

    def grid(self, model: Model, arguments: Mapping[str, Any]) -> Grid:
        sample = required(model, arguments, self.sample)  # (batch, tokens, channels)
        ids = required(model, arguments, "img_ids")
        height, width = sides(ids[0] if ids.ndim == 3 else ids)
        if height * width != sample.shape[1]:
            raise Gridless(
                f"{sample.shape[1]} picture tokens, but img_ids tell of a picture of {height} x "
                f"{width} tokens: reference pictures in the same sequence, as of FLUX.1 Kontext, "
                f"are not supported: {SERVED}"
            )
        return Grid(height, width, required(model, arguments, "encoder_hidden_states").shape[1])

    def example(self, model: Model, side: int | None, batch: int, noise: float) -> dict[str, Any]:
        side = SIDE if side is None else side
        config, weight = model.config, next(model.parameters())
        inputs = {
            "hidden_states": weight.new_zeros(batch, side * side, config.in_channels),
            "encoder_hidden_states": weight.new_zeros(batch, TEXT, config.joint_attention_dim),
            "pooled_projections": weight.new_zeros(batch, config.pooled_projection_dim),
            "timestep": weight.new_full((batch,), noise),
            "img_ids": positions(side, side, weight.device),
            "txt_ids": torch.zeros(TEXT, 3, device=weight.device),
        }
        if config.guidance_embeds:
            inputs["guidance"] = weight.new_full((batch,), 3.5)
        return inputs


def trained_tokens(model: Model) -> int | None:
    """Return the tokens, text included, that FLUX.1 was trained with; None for any other model."""
    heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
    return FLUX_1_TOKENS if (heads, head_dim) == (FLUX_1_HEADS, FLUX_1_HEAD_DIM) else None


@torch.compiler.disable(reason=UNTRACED)
def sides(ids: Tensor) -> tuple[int, int]:
    """Return (height, width) in tokens of the first picture among the ids (tokens, 3)."""
    if torch.compiler.is_exporting():
        raise ValueError(UNTRACED)
    tokens = int((ids[:, 0] == ids[0, 0]).sum())
    width = int((ids[:, :2] == ids[0, :2]).all(1).sum())
    if tokens % width:
        raise Gridless(
            f"img_ids tell of {tokens} picture tokens in rows of {width}: not a rectangle"
        )
    return tokens // width, width


def positions(height: int, width: int, device: torch.device | str) -> Tensor:
    """Return the position of every token as (0, row, column), shape (tokens, 3).

    The positions are float32, because in bf16 numbers above 256 merge.
    """
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)
    return ids.flatten(0, 1)
