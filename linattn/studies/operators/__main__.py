"""Run a stage of the study, which is a notebook in studies/operators.

`python -m linattn.studies.operators student pisa`, `python -m linattn.studies.operators collect`.
"""

import argparse
import sys

from linattn.report import studyparts
from linattn.studies.operators.settings import listed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.studies.operators", description=(__doc__ or "").splitlines()[0]
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    stages.add_parser("student").add_argument("student", choices=listed())
    stages.add_parser("collect")
    parsed = parser.parse_args(arguments)
    if parsed.stage == "student":
        stage = f"student/{parsed.student}"
        return studyparts.run("operators", "student", stage, student=parsed.student)
    return studyparts.run("operators", "operators", "collect")


if __name__ == "__main__":
    sys.exit(main())
