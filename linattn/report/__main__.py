"""Render the report of the committed run from Git alone: `python -m linattn.report`."""

import argparse
import sys
from pathlib import Path

from linattn import project
from linattn.report import leaderboard
from linattn.report.release import render

FOLDER = project.ROOT / "reports" / "committed"
CONTENT = {"index.html", leaderboard.FILE, "pages"}  # of a report, which may be replaced


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="a folder, which is replaced")
    folder = parser.parse_args(arguments).out.resolve()
    if problem := _unfit(folder):
        print(f"linattn: {folder} {problem}", file=sys.stderr)
        return 1
    try:
        page = render(folder)
    except (OSError, ValueError) as error:
        print(f"linattn: {error}; {folder} is as it was", file=sys.stderr)
        return 1
    print(f"The report of the committed run: {page}")
    return 0


def _unfit(folder: Path) -> str:
    """Say why a folder cannot be replaced by a report."""
    if folder.exists() and not folder.is_dir():
        return "is a file; name a folder"
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = present - CONTENT or (present and CONTENT - present)
    return "holds other files than a report; name an empty folder" if others else ""


if __name__ == "__main__":
    sys.exit(main())
