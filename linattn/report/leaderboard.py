"""The leaderboard: per teacher the rows of the protocol's budget by their error, with what they
cost.

- Ranked are methods: students of params.yaml, and rows that an operator's file gave.
  The teacher and the controls, which keep softmax, stand below the ranks as what they are.
- A row that is not apart from the best is marked ≈, as in the report's tables.
- Rows of another profile are left out, and rows of another budget are refused: neither is
  comparable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linattn.attention import OPERATORS
from linattn.report import budget, circumstances, markdown, pairs, pictures, tables
from linattn.report.columns import COLUMNS, Column
from linattn.report.contributed import Contributed
from linattn.report.data import Data, Report
from linattn.report.picture import Picture
from linattn.report.reading import options
from linattn.report.render import render, write_page
from linattn.report.tables import Cell

FILE = "leaderboard.html"
PEAK = "MB that a forward of one picture takes at its peak, weights aside"
MEMORY = Column("memory", "Memory", PEAK, "lower", 1e-6, section="run")
SHOWN = (*(c for c in COLUMNS if c.key in ("error", "core_macs", "added")), MEMORY)
UNITS = ("%", "M MACs", "k weights", "MB")
HEADS = tuple(f"{column.title}, {unit}" for column, unit in zip(SHOWN, UNITS, strict=True))
APART = "≈ is not the best, but its interval reaches the best value: the order is open"
PAIRED = "≈ is not the best, but the same pictures do not tell it from the best: the order is open"
EMPTY = "No row is committed yet: `make repro` makes the rows of this repository."


@dataclass(frozen=True)
class Line:
    """Hold one line: a ranked method, a control, or the teacher."""

    name: str
    operator: str  # with its options
    cells: tuple[Cell, ...]
    source: str
    rank: str = ""
    page: str = ""
    drawn: Any = None  # its pictures, where there are any


@dataclass(frozen=True)
class Board:
    """Hold the leaderboard of one teacher."""

    data: Data
    lines: tuple[Line, ...]  # ranked methods first, then controls, then the teacher
    refused: tuple[tuple[str, str], ...]  # names, and why
    others: tuple[str, ...]  # names of rows of another profile

    @property
    def ranked(self) -> list[Line]:
        return [line for line in self.lines if line.rank]

    @property
    def prompts(self) -> str:
        """Name the prompts of the pictures, from left to right."""
        return ("; " if self.data.captions else ", ").join(pictures.column_names(self.data))

    def strip(self, line: Line) -> Picture | None:
        """Return a line's pictures side by side."""
        if line.drawn is None:
            return None
        return pictures.strip(self.data, line.name, line.drawn, "drawn by")


@dataclass(frozen=True)
class Entry:
    """Hold what a line is made of, before it has a rank."""

    name: str
    result: Mapping[str, Any]  # with its run's numbers under "run"
    operator: str
    source: str
    page: str = ""
    drawn: Any = None


def boards(report: Report) -> list[Board]:
    """Return the leaderboards of all teachers that have a row."""
    made = [board(data, report.contributed.get(role, [])) for role, data in report.parts.items()]
    return [entry for entry in made if entry.lines or entry.refused]


def board(data: Data, contributed: Sequence[Contributed] = ()) -> Board:
    """Return the leaderboard of one teacher."""
    others = [row.name for row in contributed if _other_profile(data, row)]
    problems = {row.name: _problem(data, row) for row in contributed if row.name not in others}
    students = [_student(data, name) for name in data.done if _is_protocol(data.results[name])]
    joined = [_contributed(row) for row in contributed if problems.get(row.name) == ""]
    failures = {} if data.waiting else data.failures
    refused = [*failures.items(), *problems.items()]
    return Board(
        data,
        tuple(_lines(data, [*students, *joined])),
        tuple((name, reason) for name, reason in refused if reason),
        tuple(others),
    )


def _lines(data: Data, entries: Sequence[Entry]) -> list[Line]:
    """Return the ranked methods, then the controls, then the teacher."""
    controls = [entry for entry in entries if entry.result.get("control")]
    measured = [entry for entry in entries if SHOWN[0].read(entry.result)]
    methods = [entry for entry in measured if not entry.result.get("control")]
    methods.sort(key=lambda entry: entry.result["quality"]["error"]["value"])
    results = {entry.name: dict(entry.result) for entry in measured}
    lines = [_ranked(entry, rank, methods[0], results) for rank, entry in enumerate(methods, 1)]
    lines += [_line(entry) for entry in controls]
    return [*lines, _line(_teacher(data))] if data.teacher else lines


def _ranked(entry: Entry, rank: int, best: Entry, results: Mapping[str, dict[str, Any]]) -> Line:
    """Write a method's line; those that are not apart from the best are marked."""
    pair = pairs.pair(results, pairs.ERROR, entry.name, best.name)
    least = best.result["quality"]["error"]["value"]
    return _line(entry, least, str(rank), None if pair is None else not pair.apart)


def _is_protocol(result: Mapping[str, Any]) -> bool:
    """Say whether a student was trained as the protocol says, and not as its paper does."""
    return "recipe" not in result


def in_words(board: Board, name: str) -> str:
    """Say in a line where a row stands and what it costs, or why it is refused."""
    if reason := dict(board.refused).get(name):
        return f"{name} is not ranked: {reason}"
    line = next(line for line in board.lines if line.name == name)
    rank = f"rank {line.rank} of {len(board.ranked)}" if line.rank else "not ranked, a control"
    cells = []
    for column, unit, cell in zip(SHOWN, UNITS, line.cells, strict=True):
        interval = f" ({cell.interval})" if cell.interval else ""
        cells.append(f"{column.title.lower()} {cell.text} {unit}{interval}")
    return f"{name}: {rank} for {board.data.name}; {', '.join(cells)}"


def _line(
    entry: Entry, best: float | None = None, rank: str = "", close: bool | None = None
) -> Line:
    """Write a line; the best error is marked, and those that are close to it."""
    error, *costs = (column.read(entry.result) for column in SHOWN)
    cells = [tables.cell(SHOWN[0], error, best, close)]
    cells += [tables.cell(column, cost) for column, cost in zip(SHOWN[1:], costs, strict=True)]
    return Line(
        entry.name, entry.operator, tuple(cells), entry.source, rank, entry.page, entry.drawn
    )


def _student(data: Data, name: str) -> Entry:
    """Return the entry of a student of params.yaml."""
    entry = data.students[name]
    operator = entry["operator"]
    source = "control: keeps softmax" if data.is_control(name) else _paper(operator)
    return Entry(
        name,
        {**data.results[name], "run": data.runs.get(name, {})},
        _with_options(operator, options(entry)),
        source,
        tables.page_of(name),
        _drawn(data, name),
    )


def _drawn(data: Data, name: str) -> Any:
    return data.pictures.get(name, {}).get("pictures")


def _paper(operator: str) -> str:
    registered = OPERATORS.find(operator)
    return registered.paper if registered else ""


def _contributed(row: Contributed) -> Entry:
    """Return the entry of a row that an operator's file gave."""
    result = row.result
    origin = "contributed" if row.in_git else "made on this machine"
    return Entry(
        row.name,
        {**result, "run": row.run},
        _with_options(result["operator"], result["options"]),
        f"{origin}: {result['file']['paper'] or result['file']['name']}",
        drawn=row.pictures,
    )


def _teacher(data: Data) -> Entry:
    """Return the entry of the teacher, whose predictions all errors are measured against."""
    return Entry(
        data.name,
        {**data.teacher, "run": data.runs.get("teacher", {})},
        "softmax",
        "the teacher",
        drawn=_drawn(data, "teacher"),
    )


def _with_options(operator: str, chosen: Mapping[str, Any]) -> str:
    return " ".join([operator, *(f"{key}={value}" for key, value in chosen.items())])


def _other_profile(data: Data, row: Contributed) -> bool:
    return not row.problem and row.result.get("profile") != data.profile


def _problem(data: Data, row: Contributed) -> str:
    """Say why a row cannot be compared with those here, or nothing."""
    if row.problem:
        return row.problem
    if row.name in data.students:
        return "its name is that of a student of params.yaml: choose another"
    sizes = data.teacher.get("pictures")
    if sizes and row.result.get("pictures") != sizes:
        return f"it was evaluated on {row.result.get('pictures')}, and the rows here on {sizes}"
    results = (data.results[name] for name in data.done)
    protocol = [budget.training_of(result) for result in results if _is_protocol(result)]
    training = budget.training_of(row.result)
    if protocol and training != protocol[0]:
        return (
            f"it was trained with {_named(training)}, and the rows here with {_named(protocol[0])}"
        )
    return ""


def _named(training: Iterable[Any]) -> str:
    pairs = zip((*budget.TRAINED, "seeds"), training, strict=True)
    return ", ".join(f"{key} {value}" for key, value in pairs)


# The page


def write(report: Report, folder: Path) -> Path:
    """Write the leaderboard's page beside the report's first page."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_page(folder / FILE, leaderboard_html(report))


def leaderboard_html(report: Report) -> str:
    """Return the page."""
    shown = boards(report)
    return render(
        "leaderboard.html.j2",
        title=f"Leaderboard: {_counted(shown)}",
        report=report,
        boards=shown,
        columns=SHOWN,
        heads=HEADS,
        expected={board.data.role: _sentences([_minutes(board.data)]) for board in shown},
        budget=shared_budget(report),
        pairing=pairs.note(board.data for board in shown),
        machine=circumstances.machine(report),
        root="",
        here=FILE,
    )


def _counted(shown: Sequence[Board]) -> str:
    methods = sum(len(board.ranked) for board in shown)
    return f"{methods} methods, {len(shown)} teachers" if len(shown) > 1 else f"{methods} methods"


def _minutes(data: Data) -> str:
    """Say how long a row takes, as a sentence without its end; nothing where no run tells."""
    expected = budget.in_words(budget.of_row(data.profile, data.students))
    return f"a row takes{expected.removeprefix(',')}" if expected else ""


# Markdown


def markdown_table(report: Report) -> str:
    """Return the leaderboards as Markdown: the budget, then a table for each teacher."""
    shown = boards(report)
    if not shown:
        return EMPTY
    notes = "; ".join(f"{column.title}: {column.note}" for column in SHOWN)
    paired = pairs.are_there(board.data for board in shown)
    notes = f"{notes}. Brackets hold 95 % intervals; {PAIRED if paired else APART}."
    return "\n\n".join([shared_budget(report), *map(_in_markdown, shown), notes])


def shared_budget(report: Report) -> str:
    """Say what all rows share: profile, training, evaluation, machine."""
    trainings = dict.fromkeys(budget.training(data) for data in report.parts.values())
    sentences = [f"Profile {report.profile}", *trainings, *circumstances.all_sizes(report)]
    return _sentences([*sentences, budget.machine(report)])


def _in_markdown(board: Board) -> str:
    heads = ["", "Row", "Operator", *HEADS, "From"]
    rule = ["---:", "---", "---", *["---:"] * len(SHOWN), "---"]
    lines = [heads, rule, *(_markdown_line(line) for line in board.lines)]
    about = f"{board.data.prompts_in_words}; {_minutes(board.data)}".rstrip("; ")
    blocks = [f"### {board.data.name}", _sentences([about]), markdown.table(lines)]
    refused = [f"{name}: {reason}" for name, reason in board.refused]
    if refused:
        blocks.append(_sentences([f"not ranked: {'; '.join(refused)}"]))
    return "\n\n".join(blocks)


def _sentences(texts: Iterable[str]) -> str:
    """Join texts that are not empty as sentences."""
    return " ".join(f"{text[0].upper()}{text[1:].rstrip('.')}." for text in texts if text)


def _markdown_line(line: Line) -> list[str]:
    cells = [_markdown_cell(cell) for cell in line.cells]
    return [line.rank, line.name, f"`{line.operator}`", *cells, line.source]


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else f"{'≈ ' if cell.close else ''}{cell.text}"
    return f"{text} ({cell.interval})" if cell.interval else text
