"""The table of docs/operators.md: what each operator says of itself."""

from linattn.attention import OPERATORS, Operator
from linattn.report import markdown

HEADER = ("operator", "from", "in short", "text tokens", "options (defaults)")


def table() -> str:
    """Return a row for each operator of the registry, as Markdown."""
    rule = ["---"] * len(HEADER)
    return markdown.table([HEADER, rule, *map(_row, OPERATORS.values())])


def _row(operator: type[Operator]) -> list[str]:
    options = ", ".join(f"{name}={option.default!r}" for name, option in operator.table.items())
    return [f"`{operator.name}`", operator.paper, operator.gist, operator.text, f"`{options}`"]
