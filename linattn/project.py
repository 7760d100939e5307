"""Where every artifact lives, and the facts of a run.

- `ROOT` is found from the package, else from the working directory, so notebooks run from anywhere.
- Results, students and run files exist twice. Git holds the published ones:
  reports/{results,students,runs,studies}. What the pipeline makes on this machine lies beside them,
  in reports/local, which DVC keeps and Git ignores. So a run never edits what Git holds; `make
  publish` copies a finished run over it.
- Only the notebook runner of the pipeline writes to DVC's outs: it sets LINATTN_PIPELINE. The same
  notebook run by hand in JupyterLab writes to `.scratch/lab/` and reads what the pipeline made.
- Two kinds of scratch: `scratch(name, **settings)` is keyed by its settings, so a checkpoint of
  other settings (or, with `code()` among them, of other code) is never continued; nothing in
  `.scratch/` is needed to read a result.
- `facts()` says what ran on what. It carries no date and no path: a result must not change because
  it was made again.
"""

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from linattn import digests

PIPELINE = "LINATTN_PIPELINE"
LOCAL = (
    # of this machine's runs: results, students, run files and studies, as reports/ has them of
    # Git's
    "reports/local"
)


def find_root(start: Path | None = None) -> Path:
    """The folder with params.yaml and dvc.yaml: beside the package, else above the working
    directory.
    """
    here = Path(__file__).resolve().parents[1]
    place = (start or Path.cwd()).resolve()
    candidates = (place, *place.parents) if start else (here, place, *place.parents)
    for folder in candidates:
        if (folder / "params.yaml").is_file() and (folder / "linattn").is_dir():
            return folder
    raise FileNotFoundError(
        f"no params.yaml beside linattn in {place} or above it; work inside a clone of the "
        "repository"
    )


def _root() -> Path:
    try:
        return find_root()
    # the library alone, installed somewhere: only what needs the repository will miss it
    except FileNotFoundError:
        return Path.cwd()


ROOT = _root()


def python_path(root: Path | None = None) -> str:
    """PYTHONPATH of a process that must import this repository (or its copy at `root`), whatever is
    installed.
    """
    root = root or ROOT
    return os.pathsep.join(
        filter(None, [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH")])
    )


def in_pipeline() -> bool:
    return os.environ.get(PIPELINE) == "1"


@contextlib.contextmanager
def pipeline() -> Iterator[None]:
    """Paths are the pipeline's, whatever was made by hand in between."""
    before = os.environ.get(PIPELINE)
    os.environ[PIPELINE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(PIPELINE, None)
        else:
            os.environ[PIPELINE] = before


def outputs() -> Path:
    """The root that results are written under: the repository in a pipeline run, scratch when run
    by hand.
    """
    return ROOT if in_pipeline() else by_hand()


def by_hand() -> Path:
    return ROOT / ".scratch" / "lab"


def place(relative: str, write: bool = False) -> Path:
    """A path to write (its parents made), or to read (a hand-made result before the pipeline's)."""
    path = outputs() / relative
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
    return path if path.exists() else ROOT / relative


def samples(role: str = "class", write: bool = False) -> Path:
    """Folder of what a teacher drew for distillation."""
    return place(f"data/samples/{role}", write)


def reference(role: str = "class", write: bool = False) -> Path:
    """The teacher's latents and pictures that every student is compared with (safetensors)."""
    return place(f"data/reference/{role}.safetensors", write)


def pictures(student: str, write: bool = False) -> Path:
    """A student's evaluation pictures (safetensors): what the report's grids show."""
    return place(f"data/pictures/{student}.safetensors", write)


def local(relative: str, write: bool = False) -> Path:
    """The file or folder of this machine's run, e.g. `results/clear.json` or `students/clear`."""
    return place(f"{LOCAL}/{relative}", write)


def published(relative: str) -> Path:
    """The committed file or folder, e.g. `results/clear.json` or `students/clear`."""
    return ROOT / "reports" / relative


def student(name: str, seed: int | None = None, write: bool = False) -> Path:
    """Folder of a student's replaced layers, as `linattn.load` reads it; other seeds than the first
    lie below.

    By hand the published student stands in for one that was not trained here. A stage of the
    pipeline reads its own.
    """
    relative = f"students/{name}" + ("" if seed is None else f"/seed-{seed}")
    path = local(relative, write)
    return path if write or in_pipeline() or path.exists() else published(relative)


def teacher_row(role: str = "class") -> str:
    """The name that a teacher's own row, pictures and run go by."""
    return f"teacher-{role}"


def chance_row(role: str = "class") -> str:
    return f"chance-{role}"


def result(name: str, write: bool = False) -> Path:
    """Quality as measured here: the same bytes whenever this machine makes it again."""
    return local(f"results/{name}.json", write)


def run_result(name: str, write: bool = False) -> Path:
    """Facts and seconds of the last run here: different every time."""
    return local(f"runs/{name}.run.json", write)


def study(file: str, write: bool = False) -> Path:
    """A file of a study, e.g. `plugins.json`: of its run here, or the published one."""
    path = local(f"studies/{file}", write)
    return path if write or path.exists() else published(f"studies/{file}")


def executed(notebook: str, write: bool = False) -> Path:
    """An executed notebook, e.g. `04_distill/clear`."""
    return place(f"reports/notebooks/{notebook}.ipynb", write)


def failed(notebook: str) -> Path:
    return ROOT / "reports" / "failed" / f"{notebook}.ipynb"


def report(write: bool = False) -> Path:
    return place("reports/index.html", write)


def write_json(path: Path, content: Any) -> Path:
    """The same content gives the same bytes; a reader never finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    os.replace(draft, path)
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def device() -> str:
    """The same commands use a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def code() -> str:
    """Names the source as it is now, kernels included: what was begun by another is begun anew."""
    folders = (ROOT / "linattn", ROOT / "kernels" / "linattn_kernels")
    return digests.of_code(path for folder in folders for path in folder.rglob("*.py"))


def scratch(name: str, **settings: Any) -> Path:
    """A folder outside Git and DVC for checkpoints, one for each set of settings."""
    key = f"{name}-{digests.of_settings(settings, length=digests.SCRATCH)}" if settings else name
    folder = ROOT / ".scratch" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def facts() -> dict[str, Any]:
    """What this process runs on and with."""
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
    """The short commit, with `+changes` when the working tree differs from it."""
    # a copy of the working tree (pipeline.py) has no history of its own
    if "LINATTN_COMMIT" in os.environ:
        return os.environ["LINATTN_COMMIT"] or None
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    # Results are what a run writes: they do not make the code that wrote them another one.
    changed = _git("status", "--porcelain", "--", ".", ":!reports", ":!*dvc.lock", ":!README.md")
    return f"{head}+changes" if changed else head


def differs(path: str) -> bool:
    """Whether a file is another than the one of the last commit; without Git there is nothing to
    differ from.
    """
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", path))


def in_git(root: Path | None = None) -> bool:
    """Whether this folder is a Git repository itself. A copy inside another repository is none."""
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
