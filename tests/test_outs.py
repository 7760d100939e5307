"""What stages have made is brought back, and compared before it is read."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from linattn import alone, outs, project

STAGE = """
import pathlib, sys
from linattn import outs, project
number = pathlib.Path("number.txt").read_text()
project.ROOT = pathlib.Path.cwd()
if number == "bad":
    print(outs.restore(outs.running()))
    sys.exit(3)
folder = pathlib.Path("data/made/deep")
folder.mkdir(parents=True)
(folder / "values").write_text(number)
pathlib.Path("data/made/other").write_text("x")
pathlib.Path("data/single").write_text(number)
"""
DVC = """
stages:
  make:
    cmd: python stage.py
    deps: [number.txt, stage.py]
    outs: [data/made, data/single]
  read:
    cmd: cp data/single data/copy
    deps: [data/made, data/single, stage.py]
    outs: [data/copy]
"""


def dvc(*words, root):
    environment = {
        **os.environ,
        "PYTHONPATH": project.python_path(),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        project.PIPELINE: "1",
    }
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    assert dvc("init", "--no-scm", "-q", root=root).returncode == 0
    (root / "dvc.yaml").write_text(DVC)
    (root / "stage.py").write_text(STAGE)
    (root / "number.txt").write_text("1")
    (root / "data").mkdir()
    done = dvc("repro", root=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(finished, monkeypatch):
    monkeypatch.setattr(project, "ROOT", finished)
    (finished / "number.txt").write_text("1")
    outs.restore()
    return finished


def test_a_failed_stage_has_its_former_outs_back_and_an_edit_taken_back_runs_nothing(root):
    (root / "number.txt").write_text("bad")
    done = dvc("repro", "make", root=root)
    assert done.returncode != 0
    assert "data/made" in done.stdout
    assert (root / "data/made/deep/values").read_text() == "1"
    assert (root / "data/single").read_text() == "1"
    (root / "number.txt").write_text("1")
    assert "up to date" in dvc("status", root=root).stdout


def test_an_out_that_is_there_in_part_stays_as_it_is(root):
    (root / "data/single").unlink()
    (root / "data/made/other").write_text("an edit")
    try:
        assert outs.restore() == ["data/single"]
        assert (root / "data/made/other").read_text() == "an edit"
    finally:
        (root / "data/made/other").write_text("x")


def test_what_a_stage_reads_is_compared_with_what_was_recorded(root):
    outs.check("read")
    for name in ("data/single", "data/made/deep/values"):
        file = root / name
        good = file.read_bytes()
        times = file.stat()
        file.chmod(0o644)
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # DVC looks at no more than these
        with pytest.raises(ValueError, match=r"data/\w+ is not what stage make wrote.* rm -r data"):
            outs.check("read")
        file.write_bytes(good)
    outs.check("read")
    outs.check("make")


def test_a_draft_that_a_kill_has_left_is_no_damage(root):
    (root / "data/made/.values.1.draft").mkdir()
    (root / "data/made/.values.1.draft/values").write_text("half")
    try:
        outs.check("read")
    finally:
        (root / "data/made/.values.1.draft/values").unlink()
        (root / "data/made/.values.1.draft").rmdir()


# One run at a time
# ---------------------------------------------------------------------------------------------


def test_a_second_run_is_told_which_one_is_at_work(root):
    code = (
        "import pathlib, sys\nfrom linattn import project\nfrom linattn.alone import alone\n"
        "project.ROOT = pathlib.Path(sys.argv[1])\nwith alone('make repro'):\n    pass\n"
    )
    command = [sys.executable, "-c", code, str(root)]
    with alone.alone("make study STUDY=x"):
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"make study STUDY=x (process {os.getpid()}) is at work" in done.stderr
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0


def lock_of_dvc(root, pid):
    path = root / ".dvc" / "tmp" / "rwlock"
    path.write_text(json.dumps({"write": {"/x": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}))
    return path


def test_a_dvc_command_that_is_at_work_is_named(root, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "dvc"])
    try:
        path = lock_of_dvc(root, other.pid)
        with (
            pytest.raises(RuntimeError, match=f"dvc repro .process {other.pid}. is at work"),
            alone.alone("make repro"),
        ):
            pass
    finally:
        other.kill()
        other.wait()
    with alone.alone("make repro"):
        assert not path.exists()


@pytest.mark.parametrize("text", ['{"write": {"/x"', "[]", '{"write": 3}'])
def test_a_torn_lock_of_dvc_is_removed(root, text):
    path = root / ".dvc" / "tmp" / "rwlock"
    path.write_text(text)
    with alone.alone("make repro"):
        assert not path.exists()
    assert dvc("status", root=root).returncode == 0


def test_a_number_that_was_given_to_another_program_is_no_dvc_command(root):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        lock_of_dvc(root, other.pid)
        with alone.alone("make repro"):
            pass
    finally:
        other.kill()
        other.wait()


def test_the_report_goes_on_where_another_stage_stops(monkeypatch):
    def check(stage):
        raise ValueError("it is damaged")

    monkeypatch.setattr(outs, "check", check)
    monkeypatch.setattr(outs, "restore", lambda stage: [])
    monkeypatch.setattr(outs, "running", lambda: "report")
    with outs.kept():
        pass
    monkeypatch.setattr(outs, "running", lambda: "evaluate@clear")
    with pytest.raises(ValueError, match="it is damaged"), outs.kept():
        pytest.fail("the stage ran")


def test_a_disk_too_full_for_dvcs_database_is_named_and_nothing_raises_on_the_way_back(
    monkeypatch, capsys
):
    def full(*arguments):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("dvc.repo.Repo", full)
    with pytest.raises(OSError, match=r"its notes: database or disk is full; is the disk full\?"):
        outs.check("distill@lit")
    assert outs.restore("distill@lit") == []
    assert "python -m dvc checkout brings it back" in capsys.readouterr().err
