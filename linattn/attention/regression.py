"""Start the output projection by least squares: the layer is linear in these weights, so the best
change of them for a batch has a closed form.

- What is solved for is the change of the teacher's weights and bias that explains what the operator
  misses of the teacher's output, with a small ridge towards no change. It is the tangent of the
  layer in these weights, as TAFT linearises whole models (arXiv 2307.08122), and exact.
- What is left then, the other weights have to learn: `linattn.evaluation.recovery` measures it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from linattn.attention.activations import Activations
from linattn.attention.projections import outward

# Of the mean square of a channel, its mean included: where all tokens of a picture read nearly the
# same, a ridge relative to the variance lets two pictures decide on weights that no third bears.
RIDGE = 1e-3


@torch.no_grad()
def least_squares(operator: Any, attn: nn.Module, activations: Activations) -> None:
    """Write the output projection that brings the layer nearest to the teacher's on this batch."""
    q, k, v = activations.qkv()
    mixed = operator.mix(
        *(q, k, v, activations.grid), activations.x, activations.noise, activations.position
    ).flatten(2)  # (batch, tokens, channels)
    for linear, tokens in outward(attn, activations.grid):
        inputs = mixed[:, tokens].to(linear.weight.dtype)
        missed = activations.output[:, tokens] - linear(inputs)
        has_bias = linear.bias is not None
        weight, bias = solution(inputs.flatten(0, 1), missed.flatten(0, 1), has_bias)
        linear.weight.add_(weight.to(linear.weight.dtype))
        if has_bias:
            linear.bias.add_(bias.to(linear.bias.dtype))


def solution(inputs: Tensor, targets: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) of a ridge regression, both float64.

    Targets are (rows, out), inputs (rows, in). The bias is 0 where there is to be none.
    """
    inputs, targets = inputs.double(), targets.double()
    mean, offset = (tensor.mean(0) * has_bias for tensor in (inputs, targets))
    centred = inputs - mean
    gram = centred.T @ centred  # (in, in)
    ridge = RIDGE * inputs.square().sum() / inputs.shape[1]
    gram.diagonal().add_(ridge.clamp_min(torch.finfo(gram.dtype).tiny))
    weight = torch.linalg.solve(gram, centred.T @ (targets - offset)).T
    return weight, offset - weight @ mean
