"""The name under which the study of sizes is typed: `python -m linattn.resolution`."""

import sys

from linattn.studies.resolution import load, main, measure, sections

__all__ = ["load", "main", "measure", "sections"]

if __name__ == "__main__":
    sys.exit(main())
