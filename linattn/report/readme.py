"""The README's tables and pictures, from the committed results: no number there is typed by hand.

`python -m linattn.readme` rewrites what stands between the marks; `--check` says whether that is
needed. Everything it reads is in Git: reports/results, reports/runs and reports/gpu. A later run on
this machine changes nothing here until `make publish`, which also draws the grids in docs/
(`--pictures`): pictures exist only where the run was made.
"""

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from linattn import params, project, report
from linattn.report import figures, gpu, markdown, operators
from linattn.report.picture import Picture

RESULTS = ("<!-- results: written by python -m linattn.readme -->", "<!-- end of results -->")
OPERATORS = (
    "<!-- operators: written by python -m linattn.readme -->",
    "<!-- end of operators -->",
)
KERNELS = ("<!-- kernels: written by python -m linattn.readme -->", "<!-- end of kernels -->")
CAPTIONED, ROOM = 4, 6  # pictures in a row under captions, drawn as small as six would be
NONE = (
    "No run is committed yet: `make repro` makes one, and `python -m linattn.readme` puts its "
    "table here."
)


def table(data: report.Report) -> str:
    """Return the report's table as Markdown.

    The error of the undistilled rows is a column here, where the report has a group of rows.
    """
    full = report.table(data)
    chosen = [index for index, column in enumerate(full.columns) if column.key in report.OVERVIEW]
    columns = [full.columns[index] for index in chosen]
    heads = ["", *(column.title for column in columns), "Error undistilled"]
    lines = [heads, markdown.rule(len(heads) - 1)]
    for group in full.groups:
        if data.several:
            lines.append(_heading(group, len(heads)))
        shown = [row for row in group.rows if row.kind != "undistilled"]
        lines += [_row(data, row, full.columns, chosen) for row in shown]
    notes = "; ".join(f"{column.title}: {column.note}" for column in columns)
    best = "the best method of each teacher" if data.several else "the best method"
    return f"{markdown.table(lines)}\n\n{notes}. Brackets hold 95 % intervals, bold is {best}."


def _heading(group: report.Group, columns: int) -> list[str]:
    """Return an empty row with the teacher's name, since Markdown has no cell that spans."""
    waiting = ": no results yet" if group.waiting else ""
    return [f"**{group.heading}**, {group.note}{waiting}", *[""] * (columns - 1)]


def _row(
    data: report.Report, row: report.Row, columns: tuple[report.Column, ...], chosen: list[int]
) -> list[str]:
    if row.failure:
        return [f"{row.name}: failed ({row.failure})", *[""] * (len(chosen) + 1)]
    cells = [_cell(row.cells[index]) for index in chosen]
    return [row.name, *cells, _before(data, row.name, columns)]


def _cell(cell: report.Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.interval})" if cell.interval else text


def _before(data: report.Report, name: str, columns: tuple[report.Column, ...]) -> str:
    error = next((column for column in columns if column.key == "error"), None)
    before = data.results.get(name, {}).get("undistilled", {}).get("error")
    return error.text(before["value"]) if error and before else ""


def _commits(data: report.Report) -> str:
    """Name the commits of all rows: a stage that is up to date keeps the commit at which it ran."""
    facts = [run.get("facts", {}) for run in data.runs.values()]
    commits = sorted({fact["commit"] for fact in facts if fact.get("commit")})
    return f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits) or 'unknown'}"


def circumstances(data: report.Report) -> str:
    """Say how many pictures, which seeds and which machine the numbers come from."""
    facts, training_seeds = data.facts, {tuple(result["seeds"]) for result in data.results.values()}
    sizes = [teacher.teacher.get("pictures") for teacher in data.parts.values()]
    evaluation_seeds = sorted({str(size["seed"]) for size in sizes if size})
    words = [
        f"Profile {data.profile}: {' '.join(report.all_sizes(data)).rstrip('.')}",
        f"evaluation seed {', '.join(evaluation_seeds) or 'unknown'}",
        f"training seeds {', '.join(str(list(seeds)) for seeds in sorted(training_seeds))}",
    ]
    if facts:
        hardware, versions = facts["hardware"], facts["versions"]
        words += [
            f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores",
            f"torch {versions['torch']}, diffusers {versions['diffusers']}, {_commits(data)}",
        ]
    return "; ".join(words) + "."


def pictures(data: report.Report) -> dict[str, Picture]:
    """Draw a grid for every teacher with results, by its path in the repository."""
    complete = [teacher for teacher in data.parts.values() if teacher.teacher and teacher.results]
    return {picture_path(teacher.role): picture(teacher) for teacher in complete}


def picture_path(role: str) -> str:
    """Return the path of a teacher's grid."""
    return f"docs/pictures-{role}.png"


def picture(data: report.Data) -> Picture:
    """Draw the grid of a teacher and its finished students, from the same prompts and noise."""
    names = ("teacher", *data.done)
    if missing := [name for name in names if name not in data.pictures]:
        raise FileNotFoundError(
            f"no pictures of {', '.join(missing)} in data/pictures: make repro brings them"
        )
    count, room = (min(data.show, CAPTIONED), ROOM) if data.captions else (data.show, data.show)
    drawn = {name: data.pictures[name]["pictures"][:count] for name in names}
    return figures.grid(drawn, report.column_names(data)[:count], room=room)


def small(png: bytes) -> bytes:
    """Reduce a picture in Git to 128 colours: a third of the bytes, with no visible difference."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def block(data: report.Report, grids: list[str]) -> str:
    """Return the text between the marks of the results; `grids` are its lines with pictures."""
    return "\n\n".join([*grids, table(data), circumstances(data)]) if data.results else NONE


def lines(grids: Mapping[str, Picture]) -> list[str]:
    return [f"![{grid.alt}]({path})" for path, grid in grids.items()]


def standing(text: str) -> list[str]:
    """Return the lines with pictures that stand between the marks of the results now."""
    results = text.partition(RESULTS[0])[2].partition(RESULTS[1])[0]
    return [line for line in results.splitlines() if line.startswith("![")]


def in_step(text: str, data: report.Report, times: list[dict]) -> bool:
    """Say whether the README holds the current tables and circumstances; `times` are a GPU's."""
    expected = [table(data), circumstances(data)] if data.results else [NONE]
    expected += [gpu.in_markdown(times), operators.table()]
    return all(passage in text for passage in expected)


def written(text: str, content: str, marks: tuple[str, str]) -> str:
    """Return the text with `content` between the marks."""
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs the lines {begin!r} and {end!r}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.readme", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if the README is behind"
    )
    parser.add_argument(
        "--pictures", action="store_true", help="draw the grids too, from this machine's pictures"
    )
    parsed = parser.parse_args(arguments)
    settings = params.load()
    data = report.read(
        settings.students, settings.profile, teachers=settings.teachers, committed=True
    )
    times = gpu.read()
    path: Path = project.ROOT / "README.md"
    text = path.read_text()
    if parsed.check:
        if in_step(text, data, times):
            return 0
        behind = "README.md is behind reports/results, reports/runs or reports/gpu"
        print(f"{behind}: run python -m linattn.readme", file=sys.stderr)
        return 1
    grids = pictures(data) if parsed.pictures else {}
    content = block(data, lines(grids) if parsed.pictures else standing(text))
    new = written(written(text, content, RESULTS), gpu.in_markdown(times), KERNELS)
    new = written(new, operators.table(), OPERATORS)
    for path_of, grid in grids.items():
        (project.ROOT / path_of).write_bytes(small(grid.png))
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
