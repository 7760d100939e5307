"""The limits of what the numbers show, as they stand on every page of results."""

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
    return [*_of_world(data.judged, data.judged and data.captioned), BUDGET, INTERVALS, SECONDS]


def of_all(report: Report) -> list[str]:
    """Return the limits of the page on all teachers."""
    judged = [data for data in report.parts.values() if data.judged]
    captioned = any(data.captioned for data in judged)
    foreign = [FOREIGN] if judged and len(judged) < len(report.parts) else []
    of_world = _of_world(bool(judged), captioned)
    return [*of_world, *foreign, TEACHERS, BUDGET, INTERVALS, SECONDS]


def _of_world(judged: bool, captioned: bool) -> list[str]:
    """Return the limits that follow from the small world and its judge, or from having none."""
    if not judged:
        return [FOREIGN]
    pairs = [PAIRS] if captioned else []
    return [WORLD, SIZE, DISTANCES, JUDGE, *pairs]
