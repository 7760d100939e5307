"""Write what README.md and docs/ show of results: no number there is typed by hand.

`python -m linattn.readme` rewrites what stands between the marks of all blocks; `--check` says
whether that is needed. `--pictures` draws the pictures too. Everything is read from what is in Git:
reports/, params.yaml and dvc.yaml. A later run on this machine changes nothing here until
`make publish`.

A new block is one line of BLOCKS, and its two marks in the page.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from linattn import project
from linattn.passages import (
    advice,
    choices,
    families,
    grids,
    ideas,
    models,
    operators,
    profiles,
    results,
)
from linattn.passages.blocks import Block
from linattn.report import gpu, leaderboard, release
from linattn.report.data import Report
from linattn.report.picture import Picture

BLOCKS = (
    Block("README.md", "finding", ideas.finding),
    Block("README.md", "ideas", ideas.table),
    Block("docs/results.md", "results", results.section),
    Block("docs/leaderboard.md", "leaderboard", leaderboard.markdown_table),
    Block("docs/operators.md", "operators", lambda report: operators.table()),
    Block("docs/families.md", "families", lambda report: families.table()),
    Block("docs/kernels.md", "kernels", lambda report: gpu.in_markdown(gpu.read())),
    Block("docs/protocol.md", "teachers", lambda report: profiles.teachers()),
    Block("docs/protocol.md", "profiles", lambda report: profiles.profiles()),
    Block("docs/protocol.md", "stages", lambda report: profiles.stages()),
    Block("docs/advise.md", "advice", lambda report: advice.page()),
    Block("docs/your-own-model.md", "memory", lambda report: models.memory()),
    Block("docs/your-own-model.md", "budgets", lambda report: models.budgets()),
    Block("docs/which-operator.md", "nearest", choices.nearest),
    Block("docs/which-operator.md", "undistilled", choices.undistilled),
    Block("docs/which-operator.md", "cheapest", choices.cheapest),
    Block("docs/which-operator.md", "captions", choices.captions),
    Block("docs/which-operator.md", "upscaling", choices.upscaling),
    Block("docs/which-operator.md", "plug-ins", choices.plugins),
)
# Pages that show pictures of the run, with the function that draws them.
PICTURES: dict[tuple[str, str], Callable[[Report], Mapping[str, Picture]]] = {
    ("README.md", "picture"): grids.of_all,
    ("docs/results.md", "pictures"): grids.of_teachers,
}


def behind(report: Report) -> list[str]:
    """Name the blocks that are not what the results say."""
    names = []
    for block in BLOCKS:
        if block.content(_page(block.path).read_text()) != block.write(report):
            names.append(f"{block.mark} of {block.path}")
    return names


def update(report: Report) -> None:
    """Write every block that follows from results alone."""
    for block in BLOCKS:
        _put(block, block.write(report))


def draw(report: Report) -> None:
    """Draw the pictures and write the lines that show them."""
    for (path, mark), function in PICTURES.items():
        pictures = function(report)
        block = Block(path, mark, lambda report: "")
        _put(block, grids.lines(pictures, path))
        for name, picture in pictures.items():
            (project.ROOT / name).write_bytes(grids.small(picture.png))


def _put(block: Block, content: str) -> None:
    page = _page(block.path)
    page.write_text(block.put(page.read_text(), content))


def _page(path: str) -> Path:
    page = project.ROOT / path
    if not page.is_file():
        raise FileNotFoundError(f"{path} is named in linattn/passages/readme.py and does not exist")
    return page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.readme", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a block is behind"
    )
    parser.add_argument("--pictures", action="store_true", help="draw the pictures too")
    parsed = parser.parse_args(arguments)
    report = release.committed()
    if parsed.check:
        old = behind(report)
        for name in old:
            print(f"{name} is behind reports/: run python -m linattn.readme", file=sys.stderr)
        return 1 if old else 0
    if parsed.pictures:
        draw(report)
    update(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
