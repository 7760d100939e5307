"""The report of the committed run: rendered from what Git holds, equal to that of the run."""

import re
import shutil
import types

import numpy as np
import pytest
import synthetic_results
from nbformat import v4, write
from pages import check
from PIL import Image

from linattn import params, project, publish, report
from linattn.files import whole_folder
from linattn.report import __main__ as command, release, sheet

NAMES = ("softmax", "clear", "lit", "sd-lit", "flux-clear")
SOME = {name: synthetic_results.ALL[name] for name in NAMES}
SETTINGS = types.SimpleNamespace(
    profile="nano",
    report=types.SimpleNamespace(pictures=4),
    students=SOME,
    teachers=synthetic_results.TEACHERS,
)
IN_GIT = ("data/teachers", *(f"reports/{name}" for name in publish.FOLDERS))


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(project.PIPELINE, "1")
        patch.setattr(params, "load", lambda profile=None: SETTINGS)
        yield patch


@pytest.fixture(scope="module")
def run(tmp_path_factory, patch):
    """A machine that ran everything: the folder, and its report before anything was published."""
    root = tmp_path_factory.mktemp("run")
    patch.setattr(project, "ROOT", root)
    synthetic_results.write_all(SOME)
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("## Here\n\nIt ran.")])
    write(notebook, project.executed("04_distill/clear", write=True))
    data = report.read(SOME, "nano", 4, synthetic_results.TEACHERS)
    report.write(data, root / "reports", report.executed(data))
    _publish(SETTINGS.report.pictures)
    return root


def _publish(count):
    """Publish the synthetic files; they lack what the report does not read, such as weights."""
    for name in ("results", "runs"):
        shutil.copytree(project.local(name), project.published(name))
    names = [path.stem for path in project.local("results").iterdir()]
    names = [name for name in names if project.pictures(name).exists()]
    with whole_folder(project.published("pictures")) as folder:
        publish.sheets(names, folder, count)
    target = project.published("executed/04_distill/clear.ipynb")
    target.parent.mkdir(parents=True)
    shutil.copy2(project.executed("04_distill/clear"), target)


@pytest.fixture(scope="module")
def clone(run, tmp_path_factory, patch):
    """A fresh clone, which has what is in Git, and the report that it renders."""
    root = tmp_path_factory.mktemp("clone")
    for name in IN_GIT:
        if (run / name).is_dir():
            shutil.copytree(run / name, root / name)
    patch.setattr(project, "ROOT", root)
    release.render(root / "reports" / "committed")
    return root


def pages(folder):
    paths = [folder / "index.html", *(folder / "pages").iterdir()]
    return {path.name: path.read_text() for path in paths}


def test_a_clone_renders_the_pages_of_the_run(run, clone):
    assert pages(clone / "reports" / "committed") == pages(run / "reports")


def test_its_pages_carry_no_script_and_fetch_nothing(clone):
    for name, text in pages(clone / "reports" / "committed").items():
        if not name.startswith("notebook-"):
            check(text)


def test_what_was_run_here_since_does_not_change_it(clone, patch):
    patch.setattr(project, "ROOT", clone)
    before = pages(clone / "reports" / "committed")
    result = project.read_json(project.published("results/clear.json"))
    result["quality"]["error"]["value"] = 0.5
    project.write_json(project.result("clear", write=True), result)
    assert pages(release.render(clone / "reports" / "committed").parent) == before
    assert report.read(SOME, "nano", 4, SETTINGS.teachers).results["clear"] == result


def test_a_student_that_joined_since_is_not_part_of_it(clone, patch):
    patch.setattr(project, "ROOT", clone)
    joined = {**SOME, "mine": {"operator": "clear", "teacher": "class"}}
    patch.setattr(SETTINGS, "students", joined)
    assert list(release.committed().students) == list(SOME)
    patch.setattr(SETTINGS, "students", SOME)


def test_the_profile_is_that_of_the_committed_results(clone, patch):
    patch.setattr(project, "ROOT", clone)
    assert release.profile() == "nano"


def test_without_committed_results_there_is_no_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    assert release.profile() is None


# The command


@pytest.mark.parametrize("there", ["a file", "other files", "a site"])
def test_a_folder_of_other_files_is_refused_and_kept(tmp_path, capsys, there):
    folder = tmp_path / "mine"
    if there == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "letter.txt").write_text("mine")
    if there == "a site":  # its first page has the name that a report's has
        (folder / "index.html").write_text("mine")
    assert command.main(["--out", str(folder)]) == 1
    assert str(folder) in capsys.readouterr().err
    assert (folder if there == "a file" else folder / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["result.json", "picture.png"])
def test_a_damaged_file_is_named_and_the_former_report_stays(name, tmp_path, capsys, monkeypatch):
    folder, damaged = tmp_path / "out", tmp_path / name
    (folder / "pages").mkdir(parents=True)
    for page in ("index.html", "leaderboard.html"):
        (folder / page).write_text("former")
    if name.endswith("png"):
        Image.new("RGB", (64, 64)).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-20] if damaged.exists() else b"{")
    read = sheet.read if name.endswith("png") else project.read_json
    monkeypatch.setattr(release, "committed", lambda: read(damaged))
    assert command.main(["--out", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"linattn: {damaged} is damaged: ")
    assert (folder / "index.html").read_text() == "former"


def test_an_interrupted_rendering_leaves_the_former_report(clone, patch, monkeypatch):
    patch.setattr(project, "ROOT", clone)
    before = pages(clone / "reports" / "committed")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        release.render(clone / "reports" / "committed")
    assert pages(clone / "reports" / "committed") == before


# The sheets


@pytest.mark.parametrize("side", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("undistilled", [False, True])
def test_a_sheet_returns_the_bytes_that_were_written(tmp_path, side, count, undistilled):
    drawn = {"labels": np.array([9, 0, 3]), "cross": np.zeros((2, 3, 2, 2), np.uint8)}
    random = np.random.default_rng(side)
    for name in ("pictures", "undistilled")[: 1 + undistilled]:
        drawn[name] = random.integers(0, 256, (3, 3, side, side), np.uint8)
    kept = sheet.read(sheet.write(drawn, tmp_path / "row.png", count))
    assert set(kept) == set(drawn) - {"cross"}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, drawn[name][:count], err_msg=name)


def test_a_picture_that_is_no_sheet_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "row.png")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "row.png"))):
        sheet.read(tmp_path / "row.png")
