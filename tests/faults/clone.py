"""A copy of the repository in which one student of a tiny profile has been made, once a process."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from linattn import pipeline, project

STAGES = ("source@class", "sample@class", "distill@lit")
STUDENT = "reports/local/students/lit"
STUDENTS = "students:\n  lit: {operator: lit, teacher: class}\n"
PATIENCE = 300  # seconds for anything that is waited for


class Clone:
    """Hold a copy of the repository, and run commands in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def environment(self, **more: str) -> dict[str, str]:
        values = {**os.environ, "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", **more}
        values["PYTHONPATH"] = project.python_path(self.folder)
        values["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), values["PATH"]])
        values.pop(project.PIPELINE, None)
        return values

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start a command whose output goes to a file; its group is its own."""
        with (self.folder / "output.txt").open("w") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder,
                env=self.environment(**more),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *words: str, **more: str) -> tuple[int, str]:
        """Run a command, and return its exit code and what it printed."""
        code = self.start(*words, **more).wait(timeout=PATIENCE)
        return code, self.printed

    @property
    def printed(self) -> str:
        return (self.folder / "output.txt").read_text()

    def wait_for(self, pattern: str) -> None:
        """Wait until the output holds a pattern."""
        until = time.monotonic() + PATIENCE
        while not re.search(pattern, self.printed):
            if time.monotonic() > until:
                raise TimeoutError(f"no {pattern} in {self.printed[-300:]}")
            time.sleep(0.02)

    def student(self) -> dict[str, bytes]:
        """Return the files of the student by name; of nothing, nothing."""
        folder = self.folder / STUDENT
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()}

    def edit(self, before: str, after: str) -> None:
        path = self.folder / "params.yaml"
        text = path.read_text()
        if text.count(before) != 1:
            raise ValueError(f"{text.count(before)} times {before!r} in params.yaml")
        path.write_text(text.replace(before, after))

    def processes(self) -> list[psutil.Process]:
        """Return what runs in this folder."""
        running = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.folder.resolve()) and process.pid != os.getpid():
                    running.append(process)
            except psutil.Error:
                continue
        return running


@functools.cache
def _made() -> Path:
    """Make the copy and its student, in a folder that stays as long as this process."""
    parent = tempfile.TemporaryDirectory(prefix="linattn-faults-")
    _made.parent = parent  # type: ignore[attr-defined]
    folder = pipeline.copy(Path(parent.name) / "clone", "tiny")
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    path = folder / "params.yaml"
    text, count = re.subn(r"(?ms)^students:\n.*?\n(?=\nprofiles:)", STUDENTS, path.read_text())
    if count != 1:
        raise ValueError("params.yaml has no list of students that ends before its profiles")
    path.write_text(text)
    code, printed = Clone(folder).run("dvc", "repro", "-s", *STAGES)
    if code:
        raise RuntimeError(printed[-2000:])
    return folder


def finished(folder: Path) -> Clone:
    """Return a copy of the finished copy, in a folder of the caller's."""
    target = folder / "clone"
    shutil.copytree(_made(), target, symlinks=True)
    return Clone(target)


def kill(process: subprocess.Popen[str], name: signal.Signals, group: bool) -> None:
    """Send a signal to a process, or to all of its group as a terminal does."""
    (os.killpg if group else os.kill)(process.pid, name)
