"""The command that writes passages of README.md and docs/: `python -m linattn.readme`."""

import sys

from linattn.passages.readme import main

if __name__ == "__main__":
    sys.exit(main())
