"""Run the steps of `make row` one after another, and say what each of them does."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from linattn import params, pipeline, project, report, signals
from linattn.report import budget, leaderboard, markdown
from linattn.row import making, supplies
from linattn.row.request import Request, requested
from linattn.row.source import find
from linattn.testing import check_operator

KEPT = "no row was written, and the same command goes on from the last checkpoint"


def main(arguments: list[str] | None = None) -> int:
    """Make one row, and return the exit code."""
    typed = _parser().parse_args(arguments)
    try:
        with signals.interruptible(), project.pipeline():  # never what was made by hand
            return _run(typed)
    except (AssertionError, ArithmeticError, RuntimeError, ValueError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"linattn: {error}; {KEPT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"linattn: interrupted; {KEPT}", file=sys.stderr)
        return signals.INTERRUPTED
    except Exception as error:  # the operator's, most likely: its author needs the lines above
        traceback.print_exc()
        print(f"linattn: {type(error).__name__}: {error}; {KEPT}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.row", description="Make a row of the leaderboard."
    )
    parser.add_argument("--operator", default="", help="the operator's file, or a registered name")
    parser.add_argument("--teacher", default="", help="a role of params.yaml")
    parser.add_argument("--options", default="", help="of the operator: 'radius=4 pool=2'")
    parser.add_argument("--name", default="", help="the row's name; the operator's by default")
    parser.add_argument("--profile", help="instead of the one params.yaml names, in a copy")
    return parser


def _run(typed: argparse.Namespace) -> int:
    settings = params.load(typed.profile or None)
    source = find(typed.operator)
    request = requested(settings, source, typed.teacher, typed.options, typed.name)
    if settings.profile != params.load().profile:
        return pipeline.elsewhere(settings.profile, _words(typed, source.path), "linattn.row")
    with alone(request):
        if making.is_made(request):
            print(f"The row is there, made from the same file: {request.folder}")
        else:
            _compute(request)
    print("\n".join(render(request)))
    return 0


@contextlib.contextmanager
def alone(request: Request) -> Generator[None]:
    """Keep others from the row meanwhile: two would write to one draft."""
    locks = project.scratch("locks")
    try:
        with FileLock(locks / f"row-{request.role}-{request.name}", timeout=0):
            yield
    except Timeout:
        raise RuntimeError(
            f"{request.name} is being made by another process: wait for it, or choose another "
            f"name, as in NAME={request.name}-2"
        ) from None


def _words(typed: argparse.Namespace, path: Path) -> list[str]:
    """Return the arguments of the same command in another working directory."""
    operator = str(path.resolve()) if os.path.exists(typed.operator) else typed.operator
    values = {**vars(typed), "operator": operator}
    return [f"--{key}={values[key]}" for key in ("operator", "teacher", "options", "name")]


def _compute(request: Request) -> None:
    """Check the operator, make what lacks, then the row, and print the row."""
    operator = request.source.operator
    print(f"{operator.name}: holding it to the contract of operators", flush=True)
    check_operator(operator, _progress)
    settings, role = request.settings, request.role
    expected = budget.in_words(budget.of_row(settings.profile, settings.of_teacher(role)))
    print(f"{request.name}: a row of {settings.teacher(role).source}{expected}", flush=True)
    supplies.provide(settings, role)
    result = making.make(request)
    print(markdown.of_row(result))
    print(f"The row: {request.folder}")


def _progress(done: int, count: int) -> None:
    if done % 10 == 0 or done == count:
        print(f"  {done} of {count} checks", flush=True)


def render(request: Request) -> list[str]:
    """Write the leaderboard with the rows that are there, and say where the new row stands."""
    settings = params.load()
    shown = {"show": settings.report.pictures, "teachers": settings.teachers}
    data = report.read(settings.students, settings.profile, **shown)
    board = leaderboard.board(data.parts[request.role], data.contributed[request.role])
    page = leaderboard.write(data, project.report(write=True).parent)
    return [leaderboard.in_words(board, request.name), f"The leaderboard: {page}"]
