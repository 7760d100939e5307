"""Guidance: the conditioning of a batch, and the prediction that is led away from nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from linattn import conditions
from linattn.conditions import Conditioning, Prompts
from linattn.sampling.plan import Plan
from linattn.sampling.source import Source


@dataclass(frozen=True)
class GuidedBatch:
    """Hold the conditioning of a batch.

    Where guidance needs two predictions, the empty conditioning is appended.
    """

    conditioning: Conditioning  # keyword arguments of the model's forward, by name
    guidance: float  # scale of the guidance
    doubled: bool  # whether the empty conditioning is appended

    @classmethod
    def of(cls, source: Source, prompts: Prompts, plan: Plan) -> "GuidedBatch":
        conditioner = source.conditions
        conditioning = conditioner.encode(prompts)
        if conditioner.embeds_guidance:
            conditioning["guidance"] = torch.full_like(conditioning["guidance"], plan.guidance)
            return cls(conditioning, 1.0, False)
        if not doubles(source, plan):
            return cls(conditioning, plan.guidance, False)
        empty = conditions.repeated(conditioner.nothing(), len(prompts))
        return cls(conditions.joined(conditioning, empty), plan.guidance, True)


def doubles(source: Source, plan: Plan) -> bool:
    """Say whether a step takes a second prediction, that of the empty conditioning."""
    return plan.guidance > 1 and not source.conditions.embeds_guidance


def predict(
    source: Source, latents: Tensor, t: Tensor, guided: GuidedBatch
) -> tuple[Tensor, Tensor]:
    """Return the guided prediction and the raw variance for latents that share the time t.

    The variance is an empty tensor where the model predicts none.

    Args:
        source: the model with its conditions.
        latents: noisy latents, (batch, channels, height, width).
        t: the time that they share, as the scheduler counts.
        guided: the conditioning of the batch and the scale of its guidance.
    """
    weight = next(source.model.parameters())
    inputs = torch.cat([latents, latents]) if guided.doubled else latents
    times = t.to(weight.device).expand(len(inputs))
    output = source.conditions.call(
        source.model, inputs.to(weight.dtype), times, guided.conditioning
    )
    channels = latents.shape[1]
    prediction, raw = output.to(latents.dtype).split([channels, output.shape[1] - channels], dim=1)
    if not guided.doubled:
        return prediction, raw
    conditional, empty = prediction.chunk(2)
    return source.conditions.guided(conditional, empty, guided.guidance), raw.chunk(2)[0]
