"""The measures, one for each column: the key in a result, the better direction, and the number's
format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Measure = Mapping[str, Any]  # {"value", "low", "high", "n"}, see report/__init__.py


@dataclass(frozen=True)
class Column:
    """Say which measure a column shows, and how it is written."""

    key: str  # the measure's name in the result file
    title: str  # the head of the column
    note: str  # what is measured, in a sentence
    better: str  # "higher" or "lower"
    scale: float = 1.0  # what values are multiplied by to be shown
    digits: int = 1  # digits after the point
    section: str = "quality"  # of the result file

    def read(self, result: Mapping[str, Any]) -> Measure | None:
        """Return the measure in a result, or None where the result has none."""
        return measure(result, self.key, self.section)

    def text(self, value: float) -> str:
        """Write a value in the column's unit and with its digits."""
        return f"{value * self.scale:,.{self.digits}f}"


def _cost(key: str, title: str, note: str, scale: float) -> Column:
    """Return the column of a cost, which is better when lower."""
    return Column(key, title, note, "lower", scale, section="cost")


ERROR = "squared error of the prediction against the teacher's, in % of its square"
SHAPE = "% of pictures whose asked shape the judge finds"
COLOUR = "% of pictures whose asked colour the judge finds"
TWO_SHAPES = "% of pictures of two things with both asked shapes"
TWO_COLOURS = "% of pictures of two things with both asked colours"
RELATION = "% of pictures of two things that lie to each other as asked"
PSNR = "dB, final picture against the teacher's from the same noise"
SSIM = "final picture against the teacher's from the same noise"
KID_TEACHER = "× 1000, to the teacher's pictures, in the judge's space"
KID_WORLD = "× 1000, to true pictures, in the judge's space"
FID_TEACHER = "to the teacher's pictures, in the judge's space"
EYE_DISTANCE = (
    "1 − cosine of ImageNet features, to the teacher's picture from the same noise; at chance to "
    "another of the teacher's pictures"
)
EYE_KID = "KID teacher (ImageNet features), × 1000"
EYE_FID = "FID teacher (ImageNet features), from 2,048 pictures on"
CROSS_EYE = "eye distance at twice the side"
CLIP_SCORE = "100 × cosine of picture and caption, by CLIP (ViT-L/14)"
INCEPTION_FID = "to the teacher's pictures, in Inception's features"
CROSS_SHAPE = "% with the asked shape at twice the side"
ATTENTION = "million multiply-accumulates of all attention cores, one picture"
DENSITY = "weights that softmax computes, in % of dense attention's"
ADDED = "thousand parameters that the teacher does not have"
COLUMNS = (
    Column("error", "Error", ERROR, "lower", 100),
    Column("shape", "Shape", SHAPE, "higher", 100),
    Column("colour", "Colour", COLOUR, "higher", 100),
    Column("two_shapes", "Two shapes", TWO_SHAPES, "higher", 100),
    Column("two_colours", "Two colours", TWO_COLOURS, "higher", 100),
    Column("relation", "Relation", RELATION, "higher", 100),
    Column("psnr", "PSNR", PSNR, "higher"),
    Column("ssim", "SSIM", SSIM, "higher", digits=3),
    Column("kid_teacher", "KID teacher", KID_TEACHER, "lower", 1000),
    Column("kid_world", "KID world", KID_WORLD, "lower", 1000),
    Column("fid_teacher", "FID teacher", FID_TEACHER, "lower"),
    Column("eye_distance", "Eye distance", EYE_DISTANCE, "lower", digits=3),
    Column("eye_kid", "Eye KID", EYE_KID, "lower", 1000),
    Column("eye_fid", "Eye FID", EYE_FID, "lower"),
    Column("clip_score", "CLIPScore", CLIP_SCORE, "higher"),
    Column("inception_fid", "Inception FID", INCEPTION_FID, "lower"),
    Column("cross_shape", "Shape at 2×", CROSS_SHAPE, "higher", 100),
    Column("cross_eye_distance", "Eye at 2×", CROSS_EYE, "lower", digits=3),
    _cost("core_macs", "Attention", ATTENTION, 1e-6),
    _cost("density", "Density", DENSITY, 100),
    _cost("added", "Added", ADDED, 1e-3),
)
# A table over all teachers leaves these to each teacher's page, for want of room.
NOT_IN_OVERVIEW = (
    "ssim",
    "kid_teacher",
    "kid_world",
    "fid_teacher",
    "eye_fid",
    "cross_eye_distance",
    "density",
)
OVERVIEW = tuple(column.key for column in COLUMNS if column.key not in NOT_IN_OVERVIEW)


def measure(result: Mapping[str, Any], key: str, section: str = "quality") -> Measure | None:
    """Return a measure of a result, or None where the result has none."""
    value = (result.get(section) or {}).get(key)
    entry = value if isinstance(value, Mapping) else {"value": value}
    return entry if entry.get("value") is not None else None
