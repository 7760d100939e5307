"""The table of docs/families.md: a column for each operator, and what is refused."""

from linattn.attention import OPERATORS
from linattn.families import FAMILIES
from linattn.report import markdown

# Whole models that the registry refuses; what else it refuses is no model of pictures alone.
REFUSED = ("Sana", "Z-Image")


def table() -> str:
    """Return a row for each family: yes where its operators are tested, or refused."""
    lines = [["family", *OPERATORS], ["---"] * (len(OPERATORS) + 1)]
    lines += [[name, *["yes"] * len(OPERATORS)] for name in names()]
    lines += [[name, *["refused"] * len(OPERATORS)] for name in REFUSED]
    return markdown.table(lines)


def names() -> list[str]:
    """Return what the families call their models.

    tests/test_readme_families.py holds each row to tested cases.
    """
    return [family.models for family in FAMILIES.values()]
