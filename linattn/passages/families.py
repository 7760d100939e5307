"""The table of docs/families.md: a column for each operator, and what is refused."""

from linattn.attention import OPERATORS
from linattn.report import markdown

# What a reader calls the families. tests/test_readme_families.py holds each row to tested cases.
NAMES = (
    *("DiT", "PixArt alpha, Sigma", "SD 1.5, 2.1, SDXL"),
    *("SD3, SD3.5", "FLUX.1", "Qwen-Image"),
)
REFUSED = ("Sana", "Z-Image")


def table() -> str:
    """Return a row for each family: yes where its operators are tested, or refused."""
    lines = [["family", *OPERATORS], ["---"] * (len(OPERATORS) + 1)]
    lines += [[name, *["yes"] * len(OPERATORS)] for name in NAMES]
    lines += [[name, *["refused"] * len(OPERATORS)] for name in REFUSED]
    return markdown.table(lines)
