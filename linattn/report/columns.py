"""The measures, one for each column: the key in a result, the better direction, and the number's
format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    note: str
    better: str  # "higher" or "lower"
    scale: float = 1.0
    digits: int = 1
    part: str = "quality"

    def read(self, result: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the measure in a result, or None where the result has none."""
        value = (result.get(self.part) or {}).get(self.key)
        if value is None:
            return None
        value = value if isinstance(value, Mapping) else {"value": value}
        return value if value.get("value") is not None else None

    def text(self, value: float) -> str:
        """Write a value in the column's unit and with its digits."""
        return f"{value * self.scale:,.{self.digits}f}"


COLUMNS = (
    Column("error", "Error", "squared error of the prediction against the teacher's, in % of its square", "lower", 100),
    Column("shape", "Shape", "% of pictures whose asked shape the judge finds", "higher", 100),
    Column("colour", "Colour", "% of pictures whose asked colour the judge finds", "higher", 100),
    Column("two_shapes", "Two shapes", "% of pictures of two things with both asked shapes", "higher", 100),
    Column("two_colours", "Two colours", "% of pictures of two things with both asked colours", "higher", 100),
    Column("relation", "Relation", "% of pictures of two things that lie to each other as asked", "higher", 100),
    Column("psnr", "PSNR", "dB, final picture against the teacher's from the same noise", "higher"),
    Column("ssim", "SSIM", "final picture against the teacher's from the same noise", "higher", 1, 3),
    Column("kid_teacher", "KID teacher", "× 1000, to the teacher's pictures, in the judge's space", "lower", 1000, 1),
    Column("kid_world", "KID world", "× 1000, to true pictures, in the judge's space", "lower", 1000, 1),
    Column("fid_teacher", "FID teacher", "to the teacher's pictures, in the judge's space", "lower"),
    Column("cross_shape", "Shape at 2×", "% with the asked shape at twice the side", "higher", 100),
    Column("core_macs", "Attention", "million multiply-accumulates of all attention cores, one picture", "lower", 1e-6,
           part="cost"),
    Column("added", "Added", "thousand parameters that the teacher does not have", "lower", 1e-3, part="cost"),
)  # fmt: skip
# A table over all teachers has room for these; the others are on each teacher's page.
OVERVIEW = (
    "error", "shape", "colour", "two_shapes", "two_colours", "relation", "psnr", "kid_teacher", "cross_shape",
    "core_macs", "added",
)  # fmt: skip


def measure(result: Mapping[str, Any], key: str, part: str = "quality") -> dict[str, Any] | None:
    """Return a measure of a result, or None where the result has none."""
    value = (result.get(part) or {}).get(key)
    return value if value and value.get("value") is not None else None
