"""The benchmarks by name."""

from pathlib import Path

from linattn.intervals import Result
from linattn.names import known
from linattn.scorers.benchmark import Benchmark
from linattn.scorers.dpg import DPG
from linattn.scorers.geneval import GENEVAL
from linattn.scorers.hpsv2 import HPSV2

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (GENEVAL, DPG, HPSV2)}


def benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name; an unknown one is refused with the valid names.

    Args:
        name: geneval, dpg or hpsv2.
    """
    return BENCHMARKS[known(name, BENCHMARKS, "benchmark")]


def read(name: str, file: str | Path) -> dict[str, Result]:
    """Return the scores that a benchmark's scorer wrote, as the report's measures by name.

    A measure is {"value", "low", "high", "n"}, on the benchmark's own scale: GenEval's are shares,
    DPG-Bench's and HPSv2's are out of 100. `n` counts prompts. Interval and number are None where
    the file does not tell them.

    Args:
        name: geneval, dpg or hpsv2.
        file: what the scorer wrote or printed.
    """
    chosen, path = benchmark(name), Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {chosen.name}'s scorer writes it")
    return chosen.read(path)
