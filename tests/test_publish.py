"""Publishing: a finished run of this machine becomes the committed one, whole or not at all."""

import shutil
import types

import numpy as np
import pytest
import synthetic_results
from safetensors.numpy import load_file

from linattn import params, pipeline, project, publish
from linattn.passages import readme
from linattn.report import sheet

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear")}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A run of two students, beside a published run that has one student more."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    synthetic_results.write_all(FEW)
    for name in ("teacher-class", *(f"{name}.distill" for name in FEW)):
        project.write_json(project.run_result(name), {"facts": synthetic_results.FACTS})
    for name in FEW:
        project.student(name, write=True).mkdir()
        (project.student(name) / "linattn.json").write_text(name)
    project.write_json(project.published("results/removed.json"), {})
    teacher = types.SimpleNamespace(folder=tmp_path)
    settings = types.SimpleNamespace(
        teachers={"class": teacher},
        teachers_of={"anatomy": ["class"], "benchmark": ["class"], "plan": ["class"]},
        students={name: types.SimpleNamespace(**entry) for name, entry in FEW.items()},
        report=types.SimpleNamespace(pictures=4),
        of_teacher=lambda role: list(FEW),
    )
    monkeypatch.setattr(params, "load", lambda: settings)
    monkeypatch.setattr(pipeline, "stale", lambda: [])
    monkeypatch.setattr(pipeline, "render", lambda: 0)
    monkeypatch.setattr(readme, "main", lambda words: 0)
    return tmp_path


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_ran_here_becomes_what_is_published(clone):
    assert publish.main() == 0
    assert set(files(clone / "reports" / "students")) == {f"{name}/linattn.json" for name in FEW}
    for name in publish.COPIED:
        assert files(clone / "reports" / name) == files(clone / project.LOCAL / name)
    assert not project.published("results/removed.json").exists()


def test_the_first_pictures_of_each_row_are_published_without_loss(clone):
    assert publish.main() == 0
    names = [*FEW, "teacher-class"]
    anatomy = "anatomy-class.safetensors"
    folder = clone / "reports" / "pictures"
    assert set(files(folder)) == {anatomy, *(f"{name}.png" for name in names)}
    assert (folder / anatomy).read_bytes() == project.pictures("anatomy-class").read_bytes()
    for name in names:
        drawn, kept = load_file(project.pictures(name)), sheet.read(folder / f"{name}.png")
        assert set(kept) == set(drawn)
        for key, pictures in kept.items():
            np.testing.assert_array_equal(pictures, drawn[key][:4], err_msg=f"{name}: {key}")


def test_an_executed_notebook_of_each_stage_is_published(clone):
    executed = ("02_sample/class", "04_distill/softmax", "04_distill/clear", "05_evaluate/clear")
    for name in executed:
        project.executed(name, write=True).write_text(name)
    assert publish.main() == 0
    published = {"02_sample/class", "04_distill/clear", "05_evaluate/clear"}
    assert set(files(clone / "reports" / "executed")) == {f"{name}.ipynb" for name in published}


def test_what_params_no_longer_names_is_not_published(clone):
    """A student's files lie in reports/local after it was taken out; so does the draft of a write
    that was killed.
    """
    for name in ("removed.json", ".clear.json.draft"):
        (clone / project.LOCAL / "results" / name).write_text("{}")
    assert publish.main() == 0
    published = set(files(clone / "reports" / "results"))
    assert published == set(files(clone / project.LOCAL / "results")) - {
        "removed.json",
        ".clear.json.draft",
    }


def test_a_study_is_published_where_it_ran_here_and_stays_where_it_did_not(clone):
    project.write_json(project.published("studies/resolution.json"), {"here": False})
    project.write_json(project.study("plugins.json", write=True), {"here": True})
    assert publish.main() == 0
    assert set(files(clone / "reports" / "studies")) == {"resolution.json", "plugins.json"}


MISSING = (
    "results/clear.json",
    "results/anatomy-class.json",
    "results/chance-class.json",
    "runs/benchmark-class.run.json",
    "runs/clear.distill.run.json",
    "students/clear/linattn.json",
)


@pytest.mark.parametrize("path", MISSING)
def test_a_run_that_is_not_whole_is_refused_and_nothing_is_touched(clone, capsys, path):
    project.local(path).unlink()
    if path.startswith("students/"):
        project.local("students/clear").rmdir()
    before = files(clone)
    assert publish.main() == 1
    assert files(clone) == before
    assert path.removesuffix("/linattn.json") in capsys.readouterr().err


@pytest.mark.parametrize(
    "why", ["a stage is stale", "a run failed", "pictures are missing", "code was edited"]
)
def test_an_unfinished_run_is_refused_and_nothing_is_touched(clone, monkeypatch, capsys, why):
    if why == "a stage is stale":
        monkeypatch.setattr(pipeline, "stale", lambda: ["evaluate@clear"])
    elif why == "a run failed":
        project.write_json(project.run_result("clear"), {"error": "the loss became NaN"})
    elif why == "pictures are missing":
        project.pictures("clear").unlink()
    else:
        run = project.read_json(project.run_result("clear"))
        run["facts"]["commit"] += "+changes"
        project.write_json(project.run_result("clear"), run)
    before = files(clone)
    assert publish.main() == 1
    assert files(clone) == before
    message = capsys.readouterr().err
    assert "clear" in message
    assert "make repro" in message or "dvc repro" in message


def test_an_interrupted_copy_leaves_the_published_run(clone, monkeypatch):
    project.write_json(project.published("results/clear.json"), {"old": True})
    before = files(clone / "reports" / "results")

    def interrupted(source, target):
        target.write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish.main()
    assert files(clone / "reports" / "results") == before
