"""The command behind `make row`: `python -m linattn.row --operator bands.py --teacher class`."""

import os
import sys

from linattn import notebooks
from linattn.row.command import main

if __name__ == "__main__":
    if missing := {key: text for key, text in notebooks.PROCESS.items() if key not in os.environ}:
        # Allocator and MKL read them when a process starts, as a notebook of the pipeline does.
        command = [sys.executable, "-m", "linattn.row", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **missing})
    sys.exit(main())
