"""Texts of the pages that do not depend on the results, and the wording of numbers and names."""

from collections.abc import Mapping, Sequence
from typing import Any

IDEAS = {
    "softmax": "Softmax attention as the teacher has it, every token looking at every token: a control that spends the "
    "same training without saving anything.",
    "clear": "CLEAR keeps softmax and the teacher's weights, but lets a token look only at those inside a disc around "
    "it; pooled keys, where there are any, give back a coarse view of the rest.",
    "linfusion": "LinFusion replaces softmax by a normalised product of positive features, with queries and keys "
    "passed through small networks, so that one sum over all tokens serves every query.",
    "mediator": "Attention Mediators put a few pooled queries between queries and keys: they read all tokens, and the "
    "tokens read them. A depth-wise convolution gives detail back.",
    "lit": "LiT uses plain linear attention with ReLU features and few, wide heads, plus a depth-wise convolution on "
    "the values for what is near.",
}
ROLES = {  # the prompts of a teacher of this role
    "class": "class labels",
    "text": "captions, read by cross-attention",
    "text-joint": "captions, read by joint attention",
}
KINDS = {
    "reference": "References",
    "control": "Controls: softmax kept, same training",
    "student": "Students",
    "undistilled": "Converted, not distilled",
}
NO_RESULT = "no result: the stage did not finish"


def percent(value: float, digits: int = 1) -> str:
    """Write a share in per cent."""
    return f"{100 * value:.{digits}f}\u00a0%"  # no line breaks at this space


def said(measure: Mapping[str, Any], digits: int = 1) -> str:
    """Write a measure with its interval, as in 93.8 % (88.3 to 96.8)."""
    if measure.get("low") is None:
        return percent(measure["value"], digits)
    low, high = (f"{100 * measure[side]:.{digits}f}" for side in ("low", "high"))
    return f"{percent(measure['value'], digits)} ({low} to {high})"


def listed(names: Sequence[str]) -> str:
    """Join names with commas and a final "and"."""
    if not names:
        return "none"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number(count: int, noun: str) -> str:
    """Write a count and its noun, in the plural where it needs one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def are(names: Sequence[str]) -> str:
    """Return the verb that agrees with the number of names."""
    return "is" if len(names) == 1 else "are"


def methods(some: int, total: int) -> str:
    """Write how many of all methods something is true of."""
    if total == 1:
        return "the one method"
    return f"all {total} methods" if some == total else f"{some} of {total} methods"
