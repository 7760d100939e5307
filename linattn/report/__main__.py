"""Render the report of the committed run from Git alone: `python -m linattn.report`."""

import argparse
import sys
from pathlib import Path

from linattn import project
from linattn.report.release import render

FOLDER = project.ROOT / "reports" / "committed"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="a folder, which is replaced")
    folder = parser.parse_args(arguments).out.resolve()
    if problem := _unfit(folder):
        print(f"linattn: {folder} {problem}", file=sys.stderr)
        return 1
    print(f"The report of the committed run: {render(folder)}")
    return 0


def _unfit(folder: Path) -> str:
    """Say why a folder cannot be replaced by a report."""
    if folder.exists() and not folder.is_dir():
        return "is a file; name a folder"
    others = folder.is_dir() and any(folder.iterdir()) and not (folder / "index.html").is_file()
    return "holds other files than a report; name an empty folder" if others else ""


if __name__ == "__main__":
    sys.exit(main())
