"""The command behind `make rehearse`: `python -m linattn.rehearse --teacher flux`."""

import argparse
import sys

from linattn.rehearse.run import rehearse


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.rehearse",
        description="Run every stage on pipelines of published shapes with random weights.",
    )
    parser.add_argument(
        "--teacher", action="append", default=[], help="a role of the profile rehearse; repeatable"
    )
    parser.add_argument(
        "--full-depth",
        action="store_true",
        default=None,
        help="as deep as the published models; where there is a GPU they are anyway",
    )
    options = parser.parse_args(arguments)
    try:
        return rehearse(options.teacher, options.full_depth)
    except (ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
