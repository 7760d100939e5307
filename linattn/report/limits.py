"""The limits of what the numbers show, as they stand on every page of results."""

from collections.abc import Sequence

from linattn.report.circumstances import left_out
from linattn.report.data import Data, Report

WORLD = (
    "The pictures are drawn by formula, 64 pixels wide: one coloured shape on a background, or two "
    "where a caption asks for them. A method that is good here is not shown to be good on "
    "photographs."
)
SIZE = (
    "A teacher here is small and sees at most 256 tokens of a picture. At that size no "
    "sub-quadratic operator has much to save. Times at larger sizes, where a page has them, are "
    "those of single attention calls and of whole steps of a small model."
)
TEACHERS = (
    "The teachers differ in more than their attention: family, training, text. Rows are compared "
    "within a teacher; over all of them at most the order of the ideas says something."
)
BUDGET = (
    "The training is short, and one recipe for all whose page names no other. The papers train "
    "each method longer and with a recipe of its own, so a rank here is a rank for this budget, "
    "not the method's best."
)
DISTANCES = (
    "KID and FID are taken in the feature space of this repository's own judge. They compare rows "
    "of this page and nothing else: never with a published FID, which uses Inception."
)
FOREIGN = (
    "No judge knows what a teacher of your own draws. Nothing here says whether a picture shows "
    "what its prompt asks for; rows are compared with the teacher, from the same noise."
)
EYE = (
    "The eye is EfficientNet-Lite0, which was trained on ImageNet's photographs. It is not "
    "Inception, so its KID and FID are no published ones; and it sees smaller pictures enlarged to "
    "128 pixels. Its distance to the picture from the same noise and its KID need few pictures; "
    "FID needs more than the eye has features, and is left out below 2,048."
)
FEWER = (
    "A draw's multiply-accumulates are those of its forwards, guidance's second ones included; "
    "text encoders and the decoder are the same for every row and left out."
)
REHEARSAL = (
    "Teachers of a rehearsal have random weights. Their pages show that every stage runs on a "
    "model of this shape; no number on them says anything of an operator."
)
JUDGE = (
    "The judge is a network too. Its marks are right for nearly all pictures of the world, and "
    "unknown for pictures that are unlike any of them, as an untrained student draws."
)
PAIRS = (
    "Where a caption asks for two things, they are found by their colour's saturation and judged "
    "one by one: a picture in which two cannot be found is wrong in shapes, colours and relation "
    "at once."
)
INTERVALS = (
    "An interval covers the choice of pictures, not the choice of training seed, unless several "
    "seeds are listed."
)
SECONDS = (
    "Seconds belong to the machine named below and to what ran on it: PyTorch's operations on a "
    "CPU, this repository's kernels on a GPU."
)


def of_teacher(data: Data) -> list[str]:
    """Return the limits of one teacher's page."""
    return [*_of([data]), INTERVALS, SECONDS, *left_out(data)]


def of_all(report: Report) -> list[str]:
    """Return the limits of the page on all teachers."""
    return [*_of(list(report.parts.values()), TEACHERS), INTERVALS, SECONDS]


def _of(teachers: Sequence[Data], *more: str) -> list[str]:
    """Return what depends on how the teachers were measured; `more` stands before the budget."""
    judged = [data for data in teachers if data.judged]
    world = [WORLD, SIZE] if judged else []
    judge = [DISTANCES, JUDGE] if judged else []
    pairs = [PAIRS] if any(data.captioned for data in judged) else []
    foreign = [FOREIGN] if len(judged) < len(teachers) else []
    eye = [EYE, FEWER] if any(data.eyed for data in teachers) else []
    rehearsal = [REHEARSAL] if any(data.rehearsed for data in teachers) else []
    return [*rehearsal, *world, *more, BUDGET, *judge, *pairs, *foreign, *eye]
