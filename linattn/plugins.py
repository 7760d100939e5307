"""The typed name of the study of plug-ins: `python -m linattn.plugins train control`."""

import sys

from linattn.studies.plugins import make, report, settings, study
from linattn.studies.plugins.__main__ import main

__all__ = ["main", "make", "report", "settings", "study"]

if __name__ == "__main__":
    sys.exit(main())
