"""Stop where a value is infinite or not a number: every later value would be wrong in silence."""

import torch
from torch import Tensor


class NotFinite(ArithmeticError):
    """Report values that are infinite or not a number."""


def finite(values: Tensor, noun: str, remedy: str) -> Tensor:
    """Return the values, or raise NotFinite with how many are not finite.

    Args:
        values: a tensor; whole numbers are finite, and so is one of shapes alone (device meta).
        noun: what they are, for the error.
        remedy: what helps, for the error.
    """
    if values.is_meta or not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return values
    broken = int((~torch.isfinite(values)).sum())
    raise NotFinite(f"{broken:,} of {values.numel():,} {noun} are not finite: {remedy}")
