"""`make clean` removes what can be made again, keeps what nothing else holds, and names it."""

import json
import os
import shutil
import subprocess

import pytest

from linattn import project

MADE_AGAIN = (
    "reports/index.html",
    "reports/pages/clear.html",
    "reports/notebooks/04_distill/clear.ipynb",
    "reports/local/results/clear.json",
    "reports/local/students/clear/linattn.safetensors",
    "data/samples/class/shard-00000.safetensors",
    "data/operators/pisa/row.json",
    "linattn/__pycache__/x.pyc",
    ".scratch/notebooks/draft.ipynb",
    ".scratch/rehearse/flux/model.safetensors",
    ".scratch/distill-lit-0123/log.txt",
)
HELD_BY_NOTHING_ELSE = (
    ".scratch/lab/reports/local/students/mine/linattn.safetensors",
    ".scratch/distill-clear-0123/end-to-end.safetensors",
    "reports/local/rows/class/bands/result.json",
    "reports/local/studies/plugins.json",
)
OF_GIT = ("reports/results/clear.json", "data/judge/judge.safetensors", "params.yaml")


def write(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def clean(root):
    return subprocess.run(["sh", ".ci/clean"], cwd=root, capture_output=True, text=True)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "a clone"
    write(root, (*MADE_AGAIN, *OF_GIT, ".dvc/cache/files/md5/ab/cd", ".scratch/running.lock"))
    (root / ".ci").mkdir()
    shutil.copy(project.ROOT / ".ci" / "clean", root / ".ci" / "clean")
    return root


def present(root, names):
    return [name for name in names if (root / name).exists()]


def test_what_stages_made_is_removed_and_git_and_cache_stay(root):
    done = clean(root)
    assert (done.returncode, done.stderr) == (0, "")
    assert present(root, MADE_AGAIN) == []
    assert present(root, OF_GIT) == list(OF_GIT)
    assert (root / ".dvc/cache/files/md5/ab/cd").exists()
    assert "Kept" not in done.stdout
    assert not (root / ".scratch").exists()


@pytest.mark.parametrize("copy", ["", ".scratch/profiles/full"], ids=["here", "another profile"])
@pytest.mark.parametrize("name", HELD_BY_NOTHING_ELSE)
def test_what_nothing_else_holds_stays_and_is_named(root, copy, name):
    path = root / copy / name
    write(root / copy, MADE_AGAIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    done = clean(root)
    assert done.returncode == 0
    assert path.exists()
    assert "Kept, since nothing else holds it" in done.stdout
    folder = "/".join(name.split("/")[: 3 if name.startswith("reports") else 2])
    assert f"{copy or '.'}/{folder}" in done.stdout
    assert present(root / copy, MADE_AGAIN) == []


def test_a_copy_of_which_nothing_must_stay_is_removed(root):
    write(root / ".scratch/profiles/full", MADE_AGAIN)
    clean(root)
    assert not (root / ".scratch").exists()


def test_without_a_cache_results_stay(root):
    shutil.rmtree(root / ".dvc" / "cache")
    done = clean(root)
    kept = [name for name in MADE_AGAIN if name.startswith(("reports/local", "data/samples"))]
    assert present(root, kept) == kept
    assert "./data/samples (there is no DVC cache here)" in done.stdout


def test_a_run_that_is_at_work_keeps_all(root):
    (root / ".scratch" / "running.json").write_text(json.dumps({"pid": os.getpid()}))
    done = clean(root)
    assert done.returncode == 1
    assert f"process {os.getpid()} is at work" in done.stderr
    assert present(root, MADE_AGAIN) == list(MADE_AGAIN)
    (root / ".scratch" / "running.json").write_text(json.dumps({"pid": 2**22 + 1}))
    assert clean(root).returncode == 0
