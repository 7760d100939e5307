"""Read typed parameters strictly from params.yaml.

- `load()` returns the numbers of the profile that the file names, or of another by name.
- One ValueError names the path (`students.clear.radius`), the value, what is allowed there and the
  nearest name.
- A profile starts from another by YAML's merge keys. DVC resolves them as this reader does.
- A student's options are checked by building its operator on the meta device.
"""

from linattn.names import known
from linattn.params.file import load, parse, read_student
from linattn.params.operators import check_operator, class_of, described, shape_of
from linattn.params.schema import (
    USUAL,
    Anatomy,
    Benchmark,
    Distill,
    Evaluate,
    Params,
    Planning,
    Published,
    Report,
    Sample,
    Student,
    Teacher,
)
from linattn.reader import Plain, between, read

__all__ = [
    "USUAL",
    "Anatomy",
    "Benchmark",
    "Distill",
    "Evaluate",
    "Params",
    "Plain",
    "Planning",
    "Published",
    "Report",
    "Sample",
    "Student",
    "Teacher",
    "between",
    "check_operator",
    "class_of",
    "described",
    "known",
    "load",
    "parse",
    "read",
    "read_student",
    "shape_of",
]
