"""End what was started: a process and all that it has started end together, and say so once.

- Ctrl-C reaches every process of a terminal's group, and SIGTERM (of systemd, docker or a job
  manager) only the one that is named. Here both are one KeyboardInterrupt of the first process,
  which then ends the others.
- A command runs as the leader of a group of its own, so that nothing else is ever signalled.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C has ended
GRACE = 30.0  # seconds that a process has to put its things in order


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Make SIGTERM and SIGHUP a KeyboardInterrupt meanwhile, as Ctrl-C is."""
    names = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {name: signal.getsignal(name) for name in names}
    for name in names:
        if before[name] != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(name, signal.default_int_handler)
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def run(command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code; an interruption ends all it started.

    Args:
        command: the program and its arguments.
        cwd: the folder that it runs in.
        env: its environment.
    """
    process = subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        end(process)
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End the leader of a group, then the others of the group, and wait until none is left.

    The leader goes first: DVC would take the end of a stage for a reason to start the next one. The
    others get SIGTERM: at SIGINT one that still imports its packages would print a traceback.
    """
    with undisturbed():
        process.terminate()
        _wait(process.poll, GRACE)
        for name, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            if not _alive(process.pid):
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, name)
            _wait(lambda: None if _alive(process.pid) else 0, seconds)
        process.kill()
        process.wait()


@contextlib.contextmanager
def undisturbed() -> Generator[None]:
    """Ignore a second Ctrl-C while what it wants is under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _alive(group: int) -> bool:
    """Say whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait(done: Callable[[], int | None], seconds: float) -> None:
    """Wait until a call returns something, at most so long."""
    until = time.monotonic() + seconds
    while done() is None and time.monotonic() < until:
        time.sleep(0.05)
