"""Paths from anywhere, scratch apart from results, facts without a path or a date."""

import json
import os
import re
import subprocess
import sys

import pytest

from linattn import project


def run(code, cwd, **environment):
    clean = {key: value for key, value in os.environ.items() if key != project.PIPELINE}
    environment = {**clean, "PYTHONPATH": str(project.ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_root_is_found_from_any_working_directory(tmp_path):
    assert run("from linattn import project; print(project.ROOT)", tmp_path) == str(project.ROOT)
    assert project.find_root(project.ROOT / "linattn" / "attention") == project.ROOT


def test_outside_a_repository_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="inside a clone"):
        project.find_root(tmp_path)


def test_a_process_imports_this_repository_before_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    assert project.python_path().split(os.pathsep) == [
        str(project.ROOT),
        str(project.ROOT / "kernels"),
        "before",
    ]
    monkeypatch.delenv("PYTHONPATH")
    assert project.python_path(tmp_path).split(os.pathsep) == [
        str(tmp_path),
        str(tmp_path / "kernels"),
    ]


def test_results_by_hand_go_to_scratch_and_the_pipelines_to_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.delenv(project.PIPELINE, raising=False)
    assert (
        project.result("clear", write=True)
        == tmp_path / ".scratch/lab/reports/local/results/clear.json"
    )
    monkeypatch.setenv(project.PIPELINE, "1")
    assert project.result("clear", write=True) == tmp_path / "reports/local/results/clear.json"


def test_what_was_made_by_hand_is_read_first_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.delenv(project.PIPELINE, raising=False)
    assert project.student("clear") == tmp_path / "reports/students/clear"  # the published one
    here = tmp_path / "reports/local/students/clear"
    here.mkdir(parents=True)
    assert project.student("clear") == here
    project.student("clear", write=True).mkdir()
    assert project.student("clear") == tmp_path / ".scratch/lab/reports/local/students/clear"
    monkeypatch.setenv(project.PIPELINE, "1")
    assert project.student("clear") == here


def test_a_stage_reads_no_published_student(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    project.published("students/clear").mkdir(parents=True)
    assert project.student("clear", 1) == tmp_path / "reports/local/students/clear/seed-1"


def test_a_study_that_ran_here_is_preferred_to_the_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    assert project.study("plugins.json") == tmp_path / "reports/studies/plugins.json"
    project.write_json(project.study("plugins.json", write=True), {})
    assert project.study("plugins.json") == tmp_path / "reports/local/studies/plugins.json"


def test_a_block_can_take_the_pipelines_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.delenv(project.PIPELINE, raising=False)
    project.write_json(project.result("clear", write=True), {})
    with project.pipeline():
        assert project.result("clear") == tmp_path / "reports/local/results/clear.json"
    assert not project.in_pipeline()


def test_edited_code_is_other_code(tmp_path, monkeypatch):
    (tmp_path / "linattn").mkdir()
    monkeypatch.setattr(project, "ROOT", tmp_path)
    names = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "linattn" / "one.py").write_text(text)
        project.code.cache_clear()
        names.add(project.code())
    project.code.cache_clear()
    assert len(names) == 2


def test_scratch_is_another_folder_for_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    first = project.scratch("distill", steps=3, rate=0.1)
    assert first == project.scratch("distill", rate=0.1, steps=3)
    assert first != project.scratch("distill", rate=0.1, steps=4)
    assert first.is_dir()


def test_the_same_content_gives_the_same_bytes(tmp_path):
    first = project.write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None]}).read_bytes()
    assert project.write_json(tmp_path / "a.json", {"a": [0.1, None], "b": 1}).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_number_that_json_does_not_have_is_refused_and_the_old_file_stays(tmp_path):
    path = project.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        project.write_json(path, {"a": float("nan")})
    assert project.read_json(path) == {"a": 1}


def test_facts_name_the_machine_and_neither_a_path_nor_a_date():
    facts = project.facts()
    assert facts["versions"]["torch"]
    assert facts["hardware"]["cores"] >= 1
    assert facts["hardware"]["threads"] >= 1
    text = json.dumps(facts)
    assert str(project.ROOT) not in text
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", text)
    assert project.facts() == facts


def git(folder, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_says_when_code_differs_and_ignores_results(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.delenv("LINATTN_COMMIT", raising=False)
    assert project.commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    clean = project.commit()
    assert re.fullmatch(r"[0-9a-f]{12}", clean)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "result.json").write_text("{}")
    assert project.commit() == clean
    (tmp_path / "code.py").write_text("2\n")
    assert project.commit() == f"{clean}+changes"
