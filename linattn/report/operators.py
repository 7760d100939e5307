"""The README's table of operators: what each of them says of itself."""

from linattn.attention import OPERATORS, Operator

HEADER = ("operator", "from", "in short", "text tokens", "options (defaults)")


def table() -> str:
    """Return a row for each operator of the registry, as Markdown."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    return "\n".join([*lines, *(_line(_row(operator)) for operator in OPERATORS.values())])


def _row(operator: type[Operator]) -> list[str]:
    options = ", ".join(f"{name}={option.default!r}" for name, option in operator.table.items())
    return [f"`{operator.name}`", operator.paper, operator.gist, operator.text, f"`{options}`"]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
