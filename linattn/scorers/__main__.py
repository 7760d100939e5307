"""Draw a benchmark's prompts for its scorer: `python -m linattn.scorers geneval PROMPTS ...`."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from linattn import params, project, roles, surgery, teachers
from linattn.scorers.layout import lay_out
from linattn.scorers.registry import BENCHMARKS

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        teacher = _teacher(options.teacher, options.dtype)
        model = surgery.load(teacher.model, options.student) if options.student else None
        folder = lay_out(
            options.benchmark,
            options.prompts,
            teacher,
            options.out,
            model=model,
            student=options.student,
            pictures=options.pictures,
            size=options.side,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            batch=options.batch,
        )
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    print(f"Pictures for {options.benchmark}'s scorer: {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.scorers", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("benchmark", choices=sorted(BENCHMARKS))
    parser.add_argument("prompts", type=Path, help="the benchmark's own file or folder")
    parser.add_argument("--teacher", required=True, help="a role, a folder or a hub id")
    parser.add_argument("--student", help="the folder of a student of that teacher")
    parser.add_argument("--out", required=True, type=Path, help="a folder for the pictures")
    parser.add_argument("--pictures", type=int, help="of each prompt; the benchmark's by default")
    parser.add_argument("--side", type=int, help="in px; the card's by default")
    parser.add_argument("--steps", type=int, help="of a draw; the card's by default")
    parser.add_argument("--guidance", type=float, help="its scale; the card's by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=4, help="pictures drawn at once")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; the files' by default")
    return parser


def _teacher(name: str, dtype: str | None) -> teachers.Teacher:
    """Load a teacher by its role in params.yaml, its folder or its hub id."""
    options: dict[str, Any] = {"torch_dtype": getattr(torch, dtype)} if dtype else {}
    settings = params.load()
    if name in settings.teachers:
        return roles.load(settings, name, **options)
    return teachers.load(name, device=project.device(), **options)


if __name__ == "__main__":
    sys.exit(main())
