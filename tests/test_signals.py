"""An interruption ends everything that was started, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from linattn import project, signals

# A command that starts another, which writes when it is interrupted; the leader would go on.
STAGE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    pathlib.Path("started").write_text("")
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("interrupted").write_text("")
"""
LEADER = """
import pathlib, signal, subprocess, sys
for name in ("stage.py", "next.py"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen([sys.executable, name])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as DVC does while a stage runs
    child.wait()
"""
MAIN = """
import os, pathlib, sys
from linattn import signals
try:
    with signals.interruptible():
        signals.run([sys.executable, "leader.py"], cwd=pathlib.Path.cwd(), env=dict(os.environ))
except KeyboardInterrupt:
    print("interrupted once")
    sys.exit(signals.INTERRUPTED)
"""


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
def test_a_signal_to_the_first_process_ends_all_and_starts_nothing_more(tmp_path, name):
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "next.py").write_text("import pathlib; pathlib.Path('next').write_text('')")
    (tmp_path / "leader.py").write_text(LEADER)
    environment = {**os.environ, "PYTHONPATH": project.python_path()}
    main = subprocess.Popen(
        [sys.executable, "-c", MAIN],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    children = psutil.Process(main.pid).children(recursive=True)
    assert len(children) == 2
    main.send_signal(name)
    out, err = main.communicate(timeout=60)
    assert (out, err, main.returncode) == ("interrupted once\n", "", 130)
    assert not [child for child in children if child.is_running()]
    assert (tmp_path / "interrupted").exists()
    assert not (tmp_path / "next").exists()


def test_an_undisturbed_command_gives_its_code(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit(7)"]
    assert signals.run(command, cwd=tmp_path, env=dict(os.environ)) == 7


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.interruptible():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == before


def test_nohup_stays_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interruptible():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
