"""Lay pictures out as other people's scorers read them, and read what these scorers write.

- GenEval asks an object detector what is on the pictures, DPG-Bench a model that answers questions,
  HPSv2 a model of people's preferences. None of them is a dependency, and none of their prompts is
  copied here: the user names the benchmark's own file.
- `python -m linattn.scorers geneval PROMPTS --teacher FOLDER --student FOLDER --out DIR` draws with
  any teacher that reads captions, or with a student of it. After a kill the same command goes on.
- Scores are read back as the report's measures, on the scale of the benchmark itself.
"""

from linattn.scorers.benchmark import Benchmark, Prompt
from linattn.scorers.layout import lay_out
from linattn.scorers.registry import BENCHMARKS, benchmark, read

__all__ = ["BENCHMARKS", "Benchmark", "Prompt", "benchmark", "lay_out", "read"]
