"""The README's table and picture, from the committed results: no number there is typed by hand.

`python -m linattn.readme` rewrites what stands between the two marks, and docs/pictures.png. `--check` says whether the
table is that of reports/results: all it needs is in Git, while pictures and machine are known only where the run was.
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from linattn import figures, params, project, report

BEGIN, END = "<!-- results: written by python -m linattn.readme -->", "<!-- end of results -->"
PICTURE = "docs/pictures.png"
COLUMNS = ("error", "shape", "colour", "psnr", "kid_teacher", "cross_shape", "core_macs", "added")
NONE = "No run is committed yet: `make repro` makes one, and `python -m linattn.readme` puts its table here."


def table(data: report.Data) -> str:
    """The report's table as Markdown, without the undistilled rows' own group: they are one column here."""
    whole = report.table(data)
    chosen = [index for index, column in enumerate(whole.columns) if column.key in COLUMNS]
    titles = [whole.columns[index].title for index in chosen]
    lines = [_line(["", *titles, "Error undistilled"]), _line(["---", *["---:"] * (len(titles) + 1)])]
    for row in whole.rows:
        if row.kind == "undistilled":
            continue
        if row.failure:
            lines.append(_line([f"{row.name}: failed ({row.failure})", *[""] * (len(titles) + 1)]))
            continue
        cells = [_cell(row.cells[index]) for index in chosen]
        lines.append(_line([row.name, *cells, _before(data, row.name, whole.columns)]))
    notes = "; ".join(f"{whole.columns[index].title}: {whole.columns[index].note}" for index in chosen)
    return "\n".join(lines) + f"\n\n{notes}. Brackets hold 95 % intervals, bold is the best of the four methods."


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: report.Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.interval})" if cell.interval else text


def _before(data: report.Data, name: str, columns: tuple[report.Column, ...]) -> str:
    error = next((column for column in columns if column.key == "error"), None)
    found = data.results.get(name, {}).get("undistilled", {}).get("error")
    return error.text(found["value"]) if error and found else ""


def circumstances(data: report.Data) -> str:
    """N, seed and what it ran on."""
    facts, seeds = data.facts, {tuple(result["seeds"]) for result in data.results.values()}
    words = [
        f"Profile {data.profile}: {report.sizes(data).rstrip('.')}",
        f"evaluation seed {data.teacher['pictures']['seed']}",
        f"training seeds {', '.join(str(list(each)) for each in sorted(seeds))}",
    ]
    if facts:
        hardware, versions = facts["hardware"], facts["versions"]
        words += [
            f"{hardware['gpu'] or hardware['cpu']}, {hardware['cores']} cores",
            f"torch {versions['torch']}, diffusers {versions['diffusers']}, commit {facts['commit']}",
        ]
    return "; ".join(words) + "."


def picture(data: report.Data) -> figures.Picture:
    """The same classes from the same noise, by the teacher and by every student that finished."""
    missing = [name for name in ("teacher", *data.done) if name not in data.pictures]
    if missing:
        raise FileNotFoundError(f"no pictures of {', '.join(missing)} in data/pictures: make repro brings them")
    rows = {name: data.pictures[name]["pictures"][: data.show] for name in ("teacher", *data.done)}
    return figures.grid(rows, report.column_names(data))


def small(png: bytes) -> bytes:
    """In 128 colours, for a picture that lies in Git: a third of the bytes, and nothing that the eye would miss."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def block(data: report.Data) -> str:
    if not data.results:
        return NONE
    return f"![{picture(data).alt}]({PICTURE})\n\n{table(data)}\n\n{circumstances(data)}"


def in_step(text: str, data: report.Data) -> bool:
    return (table(data) if data.results else NONE) in text


def written(text: str, content: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the lines {BEGIN!r} and {END!r}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m linattn.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is behind")
    options = parser.parse_args(arguments)
    settings = params.load()
    with project.pipeline():  # never what was made by hand
        data = report.read(settings.students, settings.profile)
    path: Path = project.ROOT / "README.md"
    text = path.read_text()
    if options.check:
        if in_step(text, data):
            return 0
        print("README.md is behind reports/results: run python -m linattn.readme", file=sys.stderr)
        return 1
    new = written(text, block(data))
    if data.results:
        (project.ROOT / PICTURE).write_bytes(small(picture(data).png))
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
