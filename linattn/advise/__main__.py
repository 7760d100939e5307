"""The command `python -m linattn.advise MODEL --side 1024 2048`."""

import sys

from linattn.advise.command import main

if __name__ == "__main__":
    sys.exit(main())
