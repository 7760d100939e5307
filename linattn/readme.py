"""The command that writes the README's tables: `python -m linattn.readme`."""

import sys

from linattn.report.readme import main

if __name__ == "__main__":
    sys.exit(main())
