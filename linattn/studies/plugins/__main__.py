"""Run a stage of the study, which is a notebook in studies/plugins.

`python -m linattn.plugins train control`, `python -m linattn.plugins measure`.
"""

import argparse
import sys

from linattn.report import studyparts
from linattn.studies.plugins.settings import PLUGINS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.plugins", description=(__doc__ or "").splitlines()[0]
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("train").add_argument("plugin", choices=PLUGINS)
    stages.add_parser("measure")
    parsed = parser.parse_args(arguments)
    if parsed.stage == "train":
        return studyparts.run("plugins", "train", f"train/{parsed.plugin}", plugin=parsed.plugin)
    return studyparts.run("plugins", "plugins", "measure")


if __name__ == "__main__":
    sys.exit(main())
