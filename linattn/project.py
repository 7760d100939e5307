"""Say where every artifact lies, and what a run ran on.

- `ROOT` is found from the package, else from the working directory, so notebooks run from anywhere.
- Results, students and run files exist twice. Git holds the published ones:
  reports/{results,students,runs,studies}. What the pipeline makes on this machine lies in
  reports/local, which DVC keeps and Git ignores. A run therefore never edits what Git holds;
  `make publish` copies a finished run over the published one.
- Only the notebook runner of the pipeline writes to DVC's outs: it sets LINATTN_PIPELINE. The same
  notebook run by hand in JupyterLab writes to `.scratch/lab/` and reads what the pipeline made.
- `scratch(name, **settings)` is keyed by its settings, so a checkpoint of other settings (or, with
  `code()` among them, of other code) is never continued. Nothing in `.scratch/` is needed to read a
  result.
- `facts()` holds neither a date nor a path, because a result must not change when it is made again.
"""

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Generator
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from linattn import digests, files

PIPELINE = "LINATTN_PIPELINE"
# a file in the folder of a teacher that has random weights
REHEARSAL = "rehearsal.json"
LOCAL = "reports/local"  # what this machine's runs made, in the folders that reports/ has too
# The root of written results where a caller chose one (writing_to)
_CHOSEN: ContextVar[Path | None] = ContextVar("outputs", default=None)


def find_root(start: Path | None = None) -> Path:
    """Find the folder with params.yaml: beside the package, else above the working directory."""
    here = Path(__file__).resolve().parents[1]
    begin = (start or Path.cwd()).resolve()
    candidates = (begin, *begin.parents) if start else (here, begin, *begin.parents)
    for folder in candidates:
        if (folder / "params.yaml").is_file() and (folder / "linattn").is_dir():
            return folder
    raise FileNotFoundError(
        f"no params.yaml beside linattn in {begin} or above it; work inside a clone of the "
        "repository"
    )


def _root() -> Path:
    try:
        return find_root()
    except FileNotFoundError:
        return Path.cwd()  # the library alone is installed, and few functions need the repository


ROOT = _root()


def python_path(root: Path | None = None) -> str:
    """Return the PYTHONPATH of a process that imports this repository, or its copy at `root`."""
    root = root or ROOT
    folders = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH")]
    return os.pathsep.join(folder for folder in folders if folder)


def in_pipeline() -> bool:
    return os.environ.get(PIPELINE) == "1"


@contextlib.contextmanager
def pipeline() -> Generator[None]:
    """Make paths those of the pipeline meanwhile, whatever was made by hand."""
    before = os.environ.get(PIPELINE)
    os.environ[PIPELINE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PIPELINE, None)
        else:
            os.environ[PIPELINE] = before


@contextlib.contextmanager
def writing_to(root: Path) -> Generator[None]:
    """Make `root` the root of written results meanwhile; what it lacks is read from the repository.

    A row of the leaderboard is made so: the code of a student runs as it is, and writes elsewhere.
    """
    token = _CHOSEN.set(root)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def outputs() -> Path:
    """Return the root of written results: the repository in a pipeline run, else scratch."""
    return _CHOSEN.get() or (ROOT if in_pipeline() else by_hand())


def by_hand() -> Path:
    return ROOT / ".scratch" / "lab"


def artifact(relative: str, write: bool = False) -> Path:
    """Return a path to write, whose parents are made, or to read.

    What was made by hand is read before what the pipeline made.
    """
    path = outputs() / relative
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
    return path if path.exists() else ROOT / relative


def source(role: str, write: bool = False) -> Path:
    """Return the folder of the notes on what a teacher is, which DVC depends on."""
    return artifact(f"data/sources/{role}", write)


def samples(role: str, write: bool = False) -> Path:
    """Return the folder of what a teacher drew for distillation."""
    return artifact(f"data/samples/{role}", write)


def reference(role: str, write: bool = False) -> Path:
    """Return the file of the teacher's latents and pictures that students are compared with."""
    return artifact(f"data/reference/{role}.safetensors", write)


def pictures(student: str, write: bool = False) -> Path:
    """Return the file of a student's evaluation pictures, which the report's grids show."""
    return artifact(f"data/pictures/{student}.safetensors", write)


def local(relative: str, write: bool = False) -> Path:
    """Return a path of this machine's run, e.g. `results/clear.json` or `students/clear`."""
    return artifact(f"{LOCAL}/{relative}", write)


def published(relative: str) -> Path:
    """Return a committed path, e.g. `results/clear.json` or `students/clear`."""
    return ROOT / "reports" / relative


def student(name: str, seed: int | None = None, write: bool = False) -> Path:
    """Return the folder of a student's replaced layers, as `linattn.load` reads it.

    Other seeds than the first lie below it. By hand the published student stands in for one that
    was not trained here. A stage of the pipeline reads what this machine trained.
    """
    relative = f"students/{name}" if seed is None else f"students/{name}/seed-{seed}"
    path = local(relative, write)
    return path if write or in_pipeline() or path.exists() else published(relative)


def teacher_row(role: str) -> str:
    """Return the name of a teacher's row, of its pictures and of its run."""
    return f"teacher-{role}"


def chance_row(role: str) -> str:
    """Return the name of the row of a model that ignores what it is asked to draw."""
    return f"chance-{role}"


def anatomy_row(role: str) -> str:
    """Return the name of a teacher's anatomy: its numbers and its maps."""
    return f"anatomy-{role}"


def benchmark_row(role: str) -> str:
    """Return the name of a teacher's benchmark."""
    return f"benchmark-{role}"


def plan_row(role: str) -> str:
    """Return the name of what a teacher's layers lose, and of the plans that follow."""
    return f"plan-{role}"


def result(name: str, write: bool = False) -> Path:
    """Return the file of quality measured here; its bytes repeat when it is made again."""
    return local(f"results/{name}.json", write)


def run_result(name: str, write: bool = False) -> Path:
    """Return the file of facts and seconds of the last run here, which differ every time."""
    return local(f"runs/{name}.run.json", write)


def study(file: str, write: bool = False) -> Path:
    """Return a file of a study, e.g. `plugins.json`: of its run here, or the published one."""
    path = local(f"studies/{file}", write)
    return path if write or path.exists() else published(f"studies/{file}")


def executed(notebook: str, write: bool = False) -> Path:
    """Return the path of an executed notebook, e.g. `04_distill/clear`."""
    return artifact(f"reports/notebooks/{notebook}.ipynb", write)


def failed(notebook: str) -> Path:
    return ROOT / "reports" / "failed" / f"{notebook}.ipynb"


def report(write: bool = False) -> Path:
    return artifact("reports/index.html", write)


def write_json(path: Path, content: Any) -> Path:
    """Write a file whose bytes depend on the content alone, and return its path."""
    files.write_json(path, content)
    return path


def read_json(path: Path) -> Any:
    """Return what a file holds, or raise a ValueError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def device() -> str:
    """Name the device to compute on: a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(name: Any) -> None:
    """Raise ValueError where nothing runs on a device of torch's, such as "cpu"."""
    import torch

    try:
        torch.empty(0, device=torch.device(name))
    except (AssertionError, RuntimeError, TypeError) as error:  # without CUDA it is the first
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"nothing runs on device {name!r} here: {reason}") from None


@functools.cache
def code() -> str:
    """Digest the present source, kernels included: what other code began is begun anew."""
    folders = (ROOT / "linattn", ROOT / "kernels" / "linattn_kernels")
    return digests.of_code(path for folder in folders for path in folder.rglob("*.py"))


def scratch(name: str, **settings: Any) -> Path:
    """Return a folder outside Git and DVC for checkpoints, one for each set of settings."""
    key = f"{name}-{digests.of_settings(settings, length=digests.SCRATCH)}" if settings else name
    folder = ROOT / ".scratch" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def facts() -> dict[str, Any]:
    """Return the machine and the versions that this process runs with."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit(),
        "hardware": {
            "cpu": _cpu(),
            "cores": _cores(),
            "memory_gb": _memory(),
            "gpu": gpu,
            "threads": torch.get_num_threads(),
        },
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("torch", "diffusers", "triton", "torchmetrics", "dvc")
        },
    }


def commit() -> str | None:
    """Return the short commit, with `+changes` where the working tree differs from it."""
    # a copy of the working tree (pipeline.py) has no history
    if "LINATTN_COMMIT" in os.environ:
        return os.environ["LINATTN_COMMIT"] or None
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    # Results and pages are left out, because a run writes them and the code stays the same.
    results = (":!reports", ":!*dvc.lock", ":!README.md", ":!docs")
    changed = _git("status", "--porcelain", "--", ".", *results)
    return f"{head}+changes" if changed else head


def differs(path: str) -> bool:
    """Say whether a file differs from the last commit; without Git nothing differs."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", path))


def in_git(root: Path | None = None) -> bool:
    """Say whether this folder is a Git repository itself, and not a copy inside of one."""
    root = root or ROOT
    top = _run_git("-C", str(root), "rev-parse", "--show-toplevel")
    return top is not None and Path(top).resolve() == root.resolve()


def _git(*words: str) -> str | None:
    return _run_git(*words) if in_git() else None


def _run_git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
