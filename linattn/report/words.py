"""What the pages say whatever was measured, and how they write numbers and names."""

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
ROLES = {  # what a teacher of this role is told to draw
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
    return f"{100 * value:.{digits}f}\u00a0%"  # a space that no line breaks at


def said(value: Mapping[str, Any], digits: int = 1) -> str:
    """93.8 % (88.3 to 96.8)"""
    if value.get("low") is None:
        return percent(value["value"], digits)
    low, high = (f"{100 * value[side]:.{digits}f}" for side in ("low", "high"))
    return f"{percent(value['value'], digits)} ({low} to {high})"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def methods(some: int, total: int) -> str:
    if total == 1:
        return "the one method"
    return f"all {total} methods" if some == total else f"{some} of {total} methods"
