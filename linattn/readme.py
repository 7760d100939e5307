"""The name under which the README's tables are written: `python -m linattn.readme`."""

import sys

from linattn.report.readme import main

if __name__ == "__main__":
    sys.exit(main())
