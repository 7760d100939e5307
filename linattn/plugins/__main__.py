"""A stage of the study: `python -m linattn.plugins train control`, `python -m linattn.plugins measure`.

Each is a notebook in studies/plugins, run as the pipeline's are.
"""

import argparse
import sys
from pathlib import Path

from linattn import notebooks, project
from linattn.plugins.settings import PLUGINS

FOLDER = "studies/plugins"


def run(stage: str, plugin: str | None = None) -> Path:
    names = {"plugin": plugin} if plugin else {}
    title = f"{stage}/{plugin}" if plugin else stage
    notebook = project.ROOT / FOLDER / ("train.ipynb" if plugin else "plugins.ipynb")
    return notebooks.run(notebook, project.ROOT / "reports" / "notebooks" / FOLDER / f"{title}.ipynb", **names)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m linattn.plugins", description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("train").add_argument("plugin", choices=PLUGINS)
    stages.add_parser("measure")
    options = parser.parse_args(arguments)
    try:
        run(options.stage, getattr(options, "plugin", None))
    except (ValueError, notebooks.Failed) as error:
        cause = f"{error.__cause__}; " if error.__cause__ else ""
        print(f"linattn: plugins {options.stage} failed: {cause}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
