"""Let one run at a time work in a clone: two would write the same files."""

import contextlib
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from linattn import files, project


@contextlib.contextmanager
def alone(command: str) -> Generator[None]:
    """Keep other runs out of this clone meanwhile, or raise RuntimeError that names the other.

    Args:
        command: what was typed, such as make repro.
    """
    folder = project.ROOT / ".scratch"
    folder.mkdir(exist_ok=True)
    note = folder / "running.json"
    try:
        with FileLock(folder / "running.lock", timeout=0):  # the system frees it at any end
            _mend_dvc()
            files.write_json(note, {"command": command, "pid": os.getpid()})
            yield
            note.unlink(missing_ok=True)
    except Timeout:
        raise RuntimeError(_other(note)) from None


def _other(note: Path) -> str:
    """Say which run holds the clone."""
    try:
        running = json.loads(note.read_text())
        name = f"{running['command']} (process {running['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        name = "another run"
    return f"{name} is at work in this clone: wait for it, or stop it (Ctrl-C there)"


def _mend_dvc() -> None:
    """Refuse to run beside a dvc command, and remove what a killed one has left.

    DVC notes who reads and writes in .dvc/tmp/rwlock. A file that was torn stops every command with
    "JSON structure is corrupted" and no remedy.
    """
    path = project.ROOT / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return
    try:
        held = json.loads(path.read_text() or "{}")
        writers = list(held.get("write", {}).values())
        readers = [entry for entries in held.get("read", {}).values() for entry in entries]
    except (ValueError, AttributeError, TypeError):
        path.unlink()
        return
    for entry in (*writers, *readers):
        if _is_dvc(entry.get("pid")):
            raise RuntimeError(
                f"{entry.get('cmd') or 'dvc'} (process {entry['pid']}) is at work in this clone: "
                "wait for it, or stop it"
            )
    path.unlink()


def _is_dvc(pid: Any) -> bool:
    """Say whether a process is a DVC command: its number may have been given to another since."""
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except (psutil.Error, TypeError, ValueError):
        return False
