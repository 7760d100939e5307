"""The name under which distillation is typed, in snippets and in `python -m linattn.distill`."""

import sys

from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import Result, distill
from linattn.students import main

__all__ = ["DistillConfig", "Result", "distill", "main"]

if __name__ == "__main__":
    sys.exit(main())
