"""Texts of the pages that do not depend on the results, and the wording of numbers and names."""

from collections.abc import Mapping, Sequence
from typing import Any

PROMPTS = {  # what a teacher's prompts are, and how it reads captions
    "labels": "class labels",
    "captions": "captions",
    "cross": "captions, read by cross-attention",
    "joint": "captions, read by joint attention",
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
    return f"{hundredths(value, digits)}\u00a0%"  # no line breaks at this space


def hundredths(value: float, digits: int = 1) -> str:
    """Write a share in per cent without the sign; a small one by its first digit, not as zero."""
    text = f"{100 * value:.{digits}f}"
    return f"{100 * value:.1g}" if value and not float(text) else text


def with_interval(measure: Mapping[str, Any], digits: int = 1) -> str:
    """Write a measure with its interval, as in 93.8 % (88.3 to 96.8)."""
    if measure.get("low") is None:
        return percent(measure["value"], digits)
    low, high = (hundredths(measure[side], digits) for side in ("low", "high"))
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
