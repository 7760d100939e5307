"""Run a notebook as a stage of the pipeline: `python -m linattn.notebooks distill --student clear`.

- Only names are injected (student, teacher, profile); numbers come from params.yaml through
  params.py. A name the notebook does not declare is an error here; papermill would warn and go on.
- What a cell *shows* is a result and is kept. What it *prints* is a log with times in it: it goes
  to the terminal while it runs, not into the file. So the executed notebooks of two runs with the
  same results are the same bytes.
- It runs on a draft in scratch and is moved to its place when it is finished. One that fails is
  kept, log and traceback included, in reports/failed/, and the report names the student as failed.
"""

import argparse
import ast
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import nbformat

from linattn import params, project
from linattn.names import known


@dataclass(frozen=True)
class Stage:
    notebook: str
    takes: str = ""  # the name it is run for, if there is one of many


STAGES = {
    "teacher": Stage("01_teacher", "teacher"),
    "sample": Stage("02_sample", "teacher"),
    "anatomy": Stage("03_anatomy"),
    "distill": Stage("04_distill", "student"),
    "evaluate": Stage("05_evaluate", "student"),
    "benchmark": Stage("06_benchmark"),
    "report": Stage("07_report"),
}
# diffusers' annotation, which its own files do not follow; an image processor that nothing here
# asks for.
NOISE = ("Expected types for id2label", "requires torchvision (not installed)")
# glibc gives large buffers back to the system and faults them in again at every operation: of the
# nano run's 61 minutes of CPU time 12 were the kernel's. Without that, a training step takes three
# quarters of its time.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
# MKL chooses its kernels by addresses and by how many threads it finds worth while, unless told to
# repeat itself; the order of a set of strings (diffusers' of a pipeline's parts) changes from
# process to process.
REPEATABLE = {"MKL_CBWR": "AUTO,STRICT", "MKL_DYNAMIC": "FALSE", "PYTHONHASHSEED": "0"}
# A thread that waits for another spins for this many rounds before it gives its core away. With
# GNU's default, 300,000, two threads beside other work stand still. 40 steps of sd-nano take 7.1 s
# alone either way, and 34 s beside a process that takes both cores (docs/LOG.md, 2026-11-28).
WAITING = {"GOMP_SPINCOUNT": "10000"}
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


class Failed(RuntimeError):
    """A cell raised; the message says which error and where the notebook is."""


def run_stage(stage: str, by_hand: bool = False, **names: str) -> Path:
    """Run a stage's notebook and leave the executed copy at its DVC place; by hand, all it makes
    goes to scratch.
    """
    spec = STAGES[known(stage, STAGES, "stage")]
    name = names.get(spec.takes)
    if spec.takes and name is None:
        raise ValueError(f"stage {stage} is run for one {spec.takes}: --{spec.takes} NAME")
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
            with project.pipeline():  # where the report looks, whatever was made by hand
                project.write_json(project.run_result(name, write=True), facts)
        raise


def _check_profile(profile: str | None, by_hand: bool) -> None:
    own = params.load().profile
    if profile not in (None, own) and not by_hand:
        raise ValueError(
            f"results of profile {profile} would replace those of {own}, which the pipeline made: "
            "add --by-hand, or "
            f"make repro PROFILE={profile}"
        )


def source(notebook: str) -> Path:
    return project.ROOT / "notebooks" / f"{notebook}.ipynb"


def run(notebook: Path, out: Path, by_hand: bool = False, **names: Any) -> Path:
    """Execute `notebook` with `names` injected; `out` appears only when every cell has run."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_names(notebook, names)
    title = f"{out.parent.name}-{out.stem}".removeprefix("notebooks-")
    draft = project.scratch("notebooks") / f"{title}.ipynb"
    kept = project.failed(title)
    with _pipeline("0" if by_hand else "1"), Log(draft.with_suffix(".log")) as log:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(draft),
                parameters=names,
                kernel_name=KERNEL["name"],
                language=KERNEL["language"],
                cwd=str(project.ROOT),
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                # no warning about the encryption of a local socket
                extra_arguments=["--log-level=ERROR"],
            )
        except (papermill.PapermillExecutionError, DeadKernelError) as error:
            _keep(draft, kept)
            raise Failed(f"{kept.relative_to(project.ROOT)} has the traceback") from _reason(error)
        except BaseException:  # interrupted: what there is may still tell why
            _keep(draft, kept)
            raise
    for old in (kept, kept.with_suffix(".log")):
        old.unlink(missing_ok=True)
    return move(normalise(nbformat.read(draft, as_version=4)), draft, out)


def _reason(error: Exception) -> Exception:
    """The error of the cell, in a line."""
    name = getattr(error, "ename", None)
    if name is None:
        return RuntimeError("the kernel died, most often for want of memory")
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error.evalue)).strip()
    return RuntimeError(f"{name}: {' '.join(text.split())}")


def _keep(draft: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    for path, place in ((draft, kept), (draft.with_suffix(".log"), kept.with_suffix(".log"))):
        if path.exists():
            place.write_bytes(path.read_bytes())


def declared(notebook: Path) -> list[str]:
    """The names assigned in the cell tagged `parameters`."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            targets = [
                target
                for node in ast.parse(cell.source).body
                for target in (
                    node.targets
                    if isinstance(node, ast.Assign)
                    else [getattr(node, "target", None)]
                )
            ]
            return [target.id for target in targets if isinstance(target, ast.Name)]
    raise ValueError(
        f"{notebook.name} has no cell tagged 'parameters': nothing can be injected into it"
    )


def check_names(notebook: Path, names: dict[str, Any]) -> None:
    if not notebook.is_file():
        raise ValueError(f"no notebook {notebook}")
    valid = declared(notebook)
    for name in names:
        known(name, valid, f"parameter of {notebook.name}:")


@contextlib.contextmanager
def _pipeline(official: str = "1") -> Iterator[None]:
    """The kernel's environment: results go to their DVC places, and this repository is the one
    imported.
    """
    changes = {
        project.PIPELINE: official,
        "PYTHONPATH": project.python_path(),
        # a kernel called python3 in the home folder must not win over this one
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **{
            name: os.environ.get(name, value)
            for name, value in {**ALLOCATOR, **REPEATABLE, **WAITING}.items()
        },
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
    """What the cells print, on the terminal as it comes and in a file."""

    def __init__(self, path: Path, terminal: TextIO | None = None):
        self.path, self.terminal = path, terminal or sys.stdout

    def __enter__(self) -> "Log":
        self.file = self.path.open("w")
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        text = "".join(
            line
            for line in text.splitlines(keepends=True)
            if not any(noise in line for noise in NOISE)
        )
        for stream in (self.terminal, self.file):
            stream.write(text)
            stream.flush()

    def flush(self) -> None:
        self.terminal.flush()


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without anything that differs between two runs with the same results: times, ids, logs,
    addresses.
    """
    title = notebook.metadata.get("title")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    if title:
        notebook.metadata["title"] = title
    for number, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell["id"] = (
            "injected" if "injected-parameters" in tags else cell.get("id", f"cell-{number}")
        )
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if _is_result(output)]
    return notebook


def _is_result(output: nbformat.NotebookNode) -> bool:
    """Neither a log nor a widget: libraries show progress bars as widgets, each with a random id."""
    return output.output_type != "stream" and WIDGET not in output.get("data", {})


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    output.metadata = nbformat.from_dict({})
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])
    return output


def move(notebook: nbformat.NotebookNode, draft: Path, out: Path) -> Path:
    nbformat.write(notebook, draft)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(draft, out)
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.notebooks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--student", help="a name of params.yaml, or teacher-ROLE for evaluate")
    parser.add_argument("--teacher", help="a role of params.yaml")
    parser.add_argument("--profile", help="instead of the one params.yaml names")
    parser.add_argument(
        "--by-hand", action="store_true", help="as from JupyterLab: results go to .scratch/lab"
    )
    options = parser.parse_args(arguments)
    names = {
        name: value
        for name in ("student", "teacher", "profile")
        if (value := getattr(options, name)) is not None
    }
    try:
        _check_profile(options.profile, options.by_hand)
        out = run_stage(options.stage, options.by_hand, **names)
        if options.by_hand:
            print(f"Executed: {out}")
    except (ValueError, Failed) as error:
        cause = f"{error.__cause__}; " if error.__cause__ else ""
        print(
            f"linattn: {options.stage} {options.student or options.teacher or ''}".rstrip()
            + f" failed: {cause}{error}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
