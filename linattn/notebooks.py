"""Run a notebook as a stage of the pipeline: `python -m linattn.notebooks distill --student clear`.

- Only names are injected (student, teacher, profile); numbers come from params.yaml through
  params.py. A name that the notebook does not declare is an error here, where papermill would warn
  and go on.
- What a cell *shows* is a result and is kept. What a cell *prints* is a log with times in it, which
  goes to the terminal and not into the file. The executed notebooks of two runs with the same
  results are therefore the same bytes.
- A notebook runs as a draft in scratch, which replaces the old copy when it is finished. A notebook
  that fails is kept, log and traceback included, in reports/failed/, and the report names the
  student as failed.
- What a stage reads is compared with what dvc.lock records, and a stage that does not end well has
  its former outs back.
"""

import argparse
import ast
import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from linattn import named, outs, project, signals
from linattn.names import known


@dataclass(frozen=True)
class Stage:
    notebook: str
    takes: str = ""  # the parameter that names one teacher or student, if there is one


STAGES = {
    "teacher": Stage("01_teacher", "teacher"),
    "sample": Stage("02_sample", "teacher"),
    "anatomy": Stage("03_anatomy", "teacher"),
    "distill": Stage("04_distill", "student"),
    "evaluate": Stage("05_evaluate", "student"),
    "benchmark": Stage("06_benchmark", "teacher"),
    "plan": Stage("08_plan", "teacher"),
    "report": Stage("07_report"),
}
# diffusers warns of an annotation that its files do not follow, and transformers of an image
# processor that nothing here uses. Both print every prompt that is longer than a text encoder
# reads, at every batch.
NOISE = (
    "Expected types for id2label",
    "requires torchvision (not installed)",
    "part of your input was truncated because",
    "Token indices sequence length is longer than",
)
# glibc gives large buffers back to the system and faults them in again at every operation, which
# took 12 of the nano run's 61 minutes of CPU time. With these settings it keeps them, and a
# training step takes three quarters of the time.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
# By default MKL chooses its kernels by addresses and by a number of threads of its choice, and the
# order of a set of strings, such as diffusers' of a pipeline's parts, changes with the process.
REPEATABLE = {"MKL_CBWR": "AUTO,STRICT", "MKL_DYNAMIC": "FALSE", "PYTHONHASHSEED": "0"}
# A thread that waits for another spins for this many rounds before it gives its core away. With
# GNU's default of 300,000, two threads beside other work stand still. 40 steps of sd-nano take
# 7.1 s alone with either, and 34 beside a process that takes both cores (docs/LOG.md, 2026-11-28).
WAITING = {"GOMP_SPINCOUNT": "10000"}
# What a process of the pipeline starts with, unless its caller chose otherwise.
PROCESS = {**ALLOCATOR, **REPEATABLE, **WAITING}
PATIENCE = 600  # seconds that a cell's output may be behind the cell


class Failed(RuntimeError):
    """Report that a cell raised; the message says which error, and where the notebook is."""


def run_stage(stage: str, by_hand: bool = False, **names: str) -> Path:
    """Run a stage's notebook and leave the executed copy where DVC expects it.

    By hand, all that the notebook makes goes to scratch.
    """
    spec = STAGES[known(stage, STAGES, "stage")]
    name = names.get(spec.takes)
    if spec.takes and name is None:
        raise ValueError(f"stage {stage} is run for one {spec.takes}: --{spec.takes} NAME")
    _check_name(spec, name, names.get("profile"))
    title = f"{spec.notebook}/{name or stage}"
    root = project.by_hand() if by_hand else project.ROOT
    try:
        return run(
            source(spec.notebook),
            root / "reports" / "notebooks" / f"{title}.ipynb",
            by_hand=by_hand,
            **names,
        )
    except Failed as error:
        if name and spec.takes == "student":
            facts = {"facts": project.facts(), "error": f"{stage}: {error.__cause__}"}
            with project.pipeline():  # the report reads the pipeline's files alone
                project.write_json(project.run_result(name, write=True), facts)
        raise


def _check_name(spec: Stage, name: str | None, profile: str | None) -> None:
    """Refuse a name that params.yaml lacks, before a kernel is started or a file written."""
    row = project.teacher_row("")
    if spec.notebook == STAGES["evaluate"].notebook and str(name).startswith(row):
        named.require("teachers", str(name).removeprefix(row), profile)
    elif spec.takes:
        named.require(f"{spec.takes}s", str(name), profile)


def _check_profile(profile: str | None, by_hand: bool) -> None:
    present = named.profile()
    if profile not in (None, present) and not by_hand:
        raise ValueError(
            f"results of profile {profile} would replace those of {present}, which the pipeline "
            f"made: add --by-hand, or make repro PROFILE={profile}"
        )


def source(notebook: str) -> Path:
    return project.ROOT / "notebooks" / f"{notebook}.ipynb"


def run(notebook: Path, out: Path, by_hand: bool = False, **names: Any) -> Path:
    """Execute `notebook` with `names` injected; `out` appears only when every cell has run."""
    spare_grammars()
    import papermill
    from nbclient.exceptions import DeadKernelError

    from linattn import executed

    check_names(notebook, names)
    check_loopback()
    title = f"{out.parent.name}-{out.stem}".removeprefix("notebooks-")
    draft = project.scratch("notebooks") / f"{title}.ipynb"
    kept = project.failed(title)
    with _environment(in_pipeline=not by_hand), Log(draft.with_suffix(".log")) as log:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(draft),
                parameters=names,
                kernel_name=executed.KERNEL["name"],
                language=executed.KERNEL["language"],
                cwd=str(project.ROOT),
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                # no warning about the encryption of a local socket, nor of one that a signal closed
                extra_arguments=["--log-level=CRITICAL"],
                # a cell that prints 200 MB is behind its output for longer than the usual 4 s
                iopub_timeout=PATIENCE,
            )
        except (papermill.PapermillExecutionError, DeadKernelError) as error:
            raise Failed(_keep(draft, kept)) from _reason(error)
        except BaseException:  # interrupted: the draft may still say why
            with contextlib.suppress(OSError):
                _keep(draft, kept)
            raise
    for old in (kept, kept.with_suffix(".log")):
        old.unlink(missing_ok=True)
    return executed.move(draft, out)


def spare_grammars() -> None:
    """Keep jsonschema, which papermill imports, from compiling 38 grammars: 2.1 s of every stage.

    They check the spelling of addresses, and no notebook is checked for any.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # as if it lacked


def _reason(error: Exception) -> Exception:
    """Return the error of the cell in a line."""
    name, message = getattr(error, "ename", None), getattr(error, "evalue", "")
    if name is None:
        return RuntimeError("the kernel died, most often for want of memory")
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).strip()
    return RuntimeError(f"{name}: {' '.join(text.split())}")


def _keep(draft: Path, kept: Path) -> str:
    """Copy a draft and its log to `kept`, and say where the traceback is."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".ipynb", ".log"):
            source = draft.with_suffix(suffix)
            if source.exists():
                kept.with_suffix(suffix).write_bytes(source.read_bytes())
    except OSError as error:  # a full disk, or a folder that cannot be written
        return f"{draft.relative_to(project.ROOT)} has the traceback ({error})"
    return f"{kept.relative_to(project.ROOT)} has the traceback"


def check_loopback() -> None:
    """Raise Failed where processes cannot reach each other: a kernel is spoken to over 127.0.0.1.

    Jupyter would wait for a minute, and end in a traceback.
    """
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            return
    except OSError as error:
        raise Failed(
            "notebooks need the loopback interface, on which a kernel is spoken to: ip link set lo "
            "up, or run where 127.0.0.1 can be reached"
        ) from error


def declared(notebook: Path) -> list[str]:
    """Return the names assigned in the cell tagged `parameters`."""
    for cell in project.read_json(notebook).get("cells", []):
        if "parameters" in cell["metadata"].get("tags", []):
            return _assigned("".join(cell["source"]))
    raise ValueError(
        f"{notebook.name} has no cell tagged 'parameters': nothing can be injected into it"
    )


def _assigned(source: str) -> list[str]:
    targets: list[ast.expr] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            targets.extend(statement.targets)
        elif isinstance(statement, ast.AnnAssign):
            targets.append(statement.target)
    return [target.id for target in targets if isinstance(target, ast.Name)]


def check_names(notebook: Path, names: dict[str, Any]) -> None:
    if not notebook.is_file():
        raise ValueError(f"no notebook {notebook}")
    valid = declared(notebook)
    for name in names:
        known(name, valid, f"parameter of {notebook.name}:")


@contextlib.contextmanager
def _environment(in_pipeline: bool) -> Generator[None]:
    """Set the kernel's environment meanwhile: where results go, and what repository it imports."""
    changes = {name: os.environ.get(name, value) for name, value in PROCESS.items()}
    changes |= {
        project.PIPELINE: "1" if in_pipeline else "0",
        "PYTHONPATH": project.python_path(),
        # a kernel called python3 in the home folder must not win over this one
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Log:
    """Write what the cells print to the terminal, as it comes, and to a file."""

    def __init__(self, path: Path, terminal: TextIO | None = None):
        self.path, self.terminal = path, terminal or sys.stdout

    def __enter__(self) -> "Log":
        self.file = self.path.open("w")
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        lines = [line for line in text.splitlines(keepends=True) if not _is_noise(line)]
        text = "".join(lines)
        for stream in (self.terminal, self.file):
            stream.write(text)
            stream.flush()

    def flush(self) -> None:
        self.terminal.flush()


def _is_noise(line: str) -> bool:
    return any(noise in line for noise in NOISE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.notebooks", description="Run a notebook as a stage of the pipeline."
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--student", help="a name of params.yaml, or teacher-ROLE for evaluate")
    parser.add_argument("--teacher", help="a role of params.yaml")
    parser.add_argument("--profile", help="instead of the one params.yaml names")
    parser.add_argument(
        "--by-hand", action="store_true", help="as from JupyterLab: results go to .scratch/lab"
    )
    options = parser.parse_args(arguments)
    values = {name: getattr(options, name) for name in ("student", "teacher", "profile")}
    names = {name: value for name, value in values.items() if value is not None}
    title = f"{options.stage} {options.student or options.teacher or ''}".rstrip()

    def work() -> None:
        _check_profile(options.profile, options.by_hand)
        out = run_stage(options.stage, options.by_hand, **names)
        if options.by_hand:
            print(f"Executed: {out}")

    return ended(title, work)


def ended(title: str, work: Callable[[], object]) -> int:
    """Do the work of a stage and return its exit code; what went wrong is one sentence.

    Args:
        title: names the stage in the sentence.
        work: runs its notebook.
    """
    try:
        with signals.interruptible(), outs.kept():
            work()
    except KeyboardInterrupt:
        print(f"linattn: {title} was interrupted; the same command goes on", file=sys.stderr)
        return signals.INTERRUPTED
    except (ValueError, OSError, Failed) as error:
        cause = f"{error.__cause__}; " if error.__cause__ else ""
        print(f"linattn: {title} failed: {cause}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
