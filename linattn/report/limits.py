"""The limits of what the numbers show. They hold for every run and stand on every page of results."""

from linattn.report.data import Data, Report

FORMULA = (
    "The pictures are drawn by formula, 64 pixels wide, {things} on a background. A method that is "
    "good here "
    "is not shown to be good on photographs."
)
ONE = "The teacher is small and sees 256 tokens."
ONE_WITH_TEXT = "The teacher is small and sees 256 tokens of a picture at most."
ALL = "The teachers are small and see 256 tokens of a picture at most."
LITTLE = "At that size no sub-quadratic operator has much to save"
TIMED = "what it costs at real sizes is {where}, by single attention calls and by steps of this model at other sizes"
ORDER = (
    "The teachers differ in more than their attention: family, training, text. Rows are compared "
    "within a teacher; "
    "over all of them at most the order of the ideas says something."
)
COMMON = (
    "The training is short, and one recipe for all whose page names no other. The papers train "
    "each method longer and "
    "with a recipe of its own, so a rank here is a rank for this budget, not the method's best.",
    "KID and FID are taken in the feature space of this repository's own judge. They compare rows "
    "of this page and "
    "nothing else: never with a published FID, which uses Inception.",
    "The judge is a network too. Its marks are right for nearly all pictures of the world, and "
    "unknown for pictures "
    "that are unlike any of them, as an untrained student draws.",
)
PAIRS = (
    "Where two things were asked for, they are found by their colour's saturation and judged one "
    "by one: a picture in "
    "which two cannot be found is wrong in shapes, colours and relation at once."
)
LAST = (
    "An interval covers the choice of pictures, not the choice of training seed, unless several seeds are listed.",
    "Seconds belong to the machine named below and to what ran on it: PyTorch's operations on a "
    "CPU, this repository's "
    "kernels on a GPU.",
)


def of_teacher(data: Data, alone: bool) -> list[str]:
    """State the limits of one teacher's page.

    `alone` says that there is no other teacher, so the section on time can only be on this page.
    """
    where = "the section on time" if alone or data.benchmark else ""
    size = ONE_WITH_TEXT if data.captioned else ONE
    return _limits(size, where, data.captioned)


def of_all(report: Report) -> list[str]:
    """State the limits of the page on all teachers."""
    timed = next((data.name for data in report.parts.values() if data.benchmark), "")
    where = f"the section on time of {timed}'s page" if timed else ""
    sentences = _limits(ALL, where, any(data.captioned for data in report.parts.values()))
    return [*sentences[:2], ORDER, *sentences[2:]]


def _limits(size: str, where: str, captions: bool) -> list[str]:
    things = "one or two coloured shapes" if captions else "one coloured shape"
    small = f"{size} {LITTLE}" + (f"; {TIMED.format(where=where)}." if where else ".")
    return [FORMULA.format(things=things), small, *COMMON, *([PAIRS] if captions else []), *LAST]
