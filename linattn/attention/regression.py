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

# Of the mean square of a channel. The tokens of a picture read nearly the same of a linear operator
# (2 to 13 % of the square varies inside a picture of dit-nano), so a batch of 8 is 8 samples: with
# 1e-3 the error of its own pictures halved, and that of others rose tenfold (docs/LOG.md).
RIDGES = (1e-2, 1e-1, 1.0, 10.0)


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
        ridge = best_ridge(inputs, missed, has_bias)
        weight, bias = solution(inputs, missed, has_bias, ridge)
        linear.weight.add_(weight.to(linear.weight.dtype))
        if has_bias:
            linear.bias.add_(bias.to(linear.bias.dtype))


def best_ridge(inputs: Tensor, targets: Tensor, has_bias: bool) -> float:
    """Return the ridge with which the first half of the pictures explains the second best."""
    half = len(inputs) // 2
    if half == 0:
        return RIDGES[-1]
    errors = {}
    for ridge in RIDGES:
        weight, bias = solution(inputs[:half], targets[:half], has_bias, ridge)
        missed = targets[half:].double() - inputs[half:].double() @ weight.T - bias
        errors[ridge] = missed.square().sum().item()
    return min(errors, key=lambda ridge: errors[ridge])


def solution(
    inputs: Tensor, targets: Tensor, has_bias: bool, ridge: float
) -> tuple[Tensor, Tensor]:
    """Return weight (out, in) and bias (out,) of a ridge regression, both float64.

    Targets are (pictures, tokens, out), inputs (pictures, tokens, in). The bias is 0 where there is
    to be none.
    """
    inputs, targets = (tensor.flatten(0, 1).double() for tensor in (inputs, targets))
    mean, offset = (tensor.mean(0) * has_bias for tensor in (inputs, targets))
    centred = inputs - mean
    gram = centred.T @ centred  # (in, in)
    strength = ridge * inputs.square().sum() / inputs.shape[1]
    gram.diagonal().add_(strength.clamp_min(torch.finfo(gram.dtype).tiny))
    weight = torch.linalg.solve(gram, centred.T @ (targets - offset)).T
    return weight, offset - weight @ mean
