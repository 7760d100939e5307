import re
import shutil
import types

import pytest
import synthetic_results

from linattn import project, report
from linattn.attention import OPERATORS
from linattn.report import gpu, operators, readme

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "linfusion", "lit")}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    synthetic_results.write_all(FEW, failed="linfusion")
    return report.read(FEW, "nano")


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Read a report of three teachers, one of which has no result yet."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    text = {name: synthetic_results.TEXT[name] for name in ("sd-softmax", "sd-lit")}
    synthetic_results.write_all({**FEW, **text}, failed="linfusion")
    waiting = {"flux-clear": synthetic_results.TEXT["flux-clear"]}
    return report.read({**FEW, **text, **waiting}, "nano", teachers=synthetic_results.TEACHERS)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(data):
    """Return the cells of the README's table, line by line."""
    return [cells(line) for line in readme.table(data).splitlines() if line.startswith("|")]


def test_every_student_has_a_row_of_the_same_columns(data):
    titles, _, *body = rows(data)
    references, students = ["teacher", "teacher, 8 steps", "chance"], list(FEW)
    assert [row[0].split(":")[0] for row in body] == references + students
    assert {len(row) for row in body} == {len(titles)}


def test_the_table_holds_the_numbers_of_the_results(data):
    titles, _, *body = rows(data)
    clear = dict(zip(titles, next(row for row in body if row[0] == "clear"), strict=True))
    assert clear["Error"].startswith("9.0 (")
    assert clear["Error undistilled"] == "23.3"


def test_the_best_method_is_bold_and_a_control_never(data):
    titles, _, *body = rows(data)
    error = titles.index("Error")
    bold = [row[0] for row in body if row[error].startswith("**")]
    assert bold == ["lit"]


def test_a_failed_student_is_named_as_failed(data):
    assert "| linfusion: failed (the loss became NaN at step 12) |" in readme.table(data)


def test_circumstances_name_sizes_seeds_and_the_machine(data):
    sentence = readme.circumstances(data)
    assert all(size in sentence for size in ("128 pictures", "seed 1000", "[0]"))
    assert all(fact in sentence for fact in ("A processor of 2020", "torch 2.13.0", "0123456789ab"))


def test_the_picture_has_a_row_for_the_teacher_and_every_student_that_finished(data):
    picture = readme.picture(data.only)
    assert all(name in picture.alt for name in ("teacher", "softmax", "clear", "lit"))
    assert "linfusion" not in picture.alt
    assert readme.lines(readme.pictures(data)) == [f"![{picture.alt}](docs/pictures-class.png)"]


def test_missing_pictures_are_named(data):
    data.only.pictures.pop("clear")
    with pytest.raises(FileNotFoundError, match="no pictures of clear.*make repro"):
        readme.pictures(data)


def test_the_check_needs_no_pictures_and_sees_a_changed_number_or_machine(data):
    text = readme.block(data, []) + gpu.in_markdown([]) + operators.table()
    data.only.pictures = {}
    assert readme.in_step(text, data, [])
    data.only.facts["hardware"]["cores"] += 1
    assert not readme.in_step(text, data, [])
    data.only.facts["hardware"]["cores"] -= 1
    data.results["clear"]["quality"]["error"]["value"] += 0.05
    assert not readme.in_step(text, data, [])


def test_several_teachers_share_one_table_each_under_its_name(several):
    titles, _, *body = rows(several)
    references = ["teacher", "teacher, 8 steps", "chance"]
    failed = "linfusion: failed (the loss became NaN at step 12)"
    assert [row[0] for row in body] == [
        *("**dit-nano**, class labels", *references, "softmax", "clear", failed, "lit"),
        *("**sd-nano**, captions, read by cross-attention", *references, "sd-softmax", "sd-lit"),
        "**flux-nano**, captions, read by joint attention: no results yet",
    ]
    assert {len(row) for row in body} == {len(titles)}
    error = titles.index("Error")
    assert [row[0] for row in body if row[error].startswith("**")] == ["lit", "sd-lit"]
    assert "Relation" in titles
    assert "bold is the best method of each teacher" in readme.table(several)


def test_every_teacher_with_results_has_a_grid_of_its_own(several):
    grids = readme.pictures(several)
    assert list(grids) == ["docs/pictures-class.png", "docs/pictures-text.png"]
    captions = [scene.caption for scene in synthetic_results.scenes("text")]
    alt = grids["docs/pictures-text.png"].alt
    assert all(caption in alt for caption in captions[: readme.CAPTIONED])
    assert captions[readme.CAPTIONED] not in alt
    block = readme.block(several, readme.lines(grids))
    assert all(f"![{grid.alt}]({path})" in block for path, grid in grids.items())


def test_captioned_pictures_are_small_enough_for_git(several):
    class_grid, text_grid = readme.pictures(several).values()
    assert text_grid.size[0] < class_grid.size[0]
    assert len(readme.small(text_grid.png)) < 150_000


def test_circumstances_that_all_teachers_share_stand_there_once(several):
    sentence = readme.circumstances(several)
    assert sentence.count("128 pictures a row") == 1
    assert "Half of the pictures of sd-nano show one thing" in sentence


def test_circumstances_name_the_commit_of_every_row(several):
    assert readme.circumstances(several).endswith("commit 0123456789ab.")
    runs = several.parts["text"].runs
    facts = {**runs["sd-lit"]["facts"], "commit": "fedcba987654"}
    runs["sd-lit"] = {**runs["sd-lit"], "facts": facts}
    assert readme.circumstances(several).endswith("commits 0123456789ab, fedcba987654.")


def test_a_missing_row_of_a_teacher_stops_neither_table_nor_circumstances(several):
    several.parts["text"].teacher = {}
    assert "sd-lit" in readme.table(several)
    assert "docs/pictures-text.png" not in readme.pictures(several)
    assert "evaluation seed 1000" in readme.circumstances(several)


def test_the_command_writes_a_grid_for_each_teacher(several, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / project.LOCAL, tmp_path / "reports", dirs_exist_ok=True)
    (tmp_path / "README.md").write_text(
        "\nold\n".join(
            ["before", *readme.OPERATORS, *readme.RESULTS, "between", *readme.KERNELS, "after"]
        )
    )
    (tmp_path / "docs").mkdir()
    settings = types.SimpleNamespace(
        students=several.students, profile="nano", teachers=synthetic_results.TEACHERS
    )
    monkeypatch.setattr(readme.params, "load", lambda: settings)
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    assert not list((tmp_path / "docs").iterdir())
    assert readme.main(["--pictures"]) == 0
    drawn = (tmp_path / "README.md").read_text()
    assert drawn.count("](docs/pictures") == 2
    assert readme.main([]) == 0
    assert (tmp_path / "README.md").read_text() == drawn
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == [
        "pictures-class.png",
        "pictures-text.png",
    ]


def test_only_what_stands_between_the_marks_changes():
    begin, end = readme.RESULTS
    new = readme.written(f"before\n{begin}\nold\n{end}\nafter\n", "new", readme.RESULTS)
    assert new == f"before\n{begin}\nnew\n{end}\nafter\n"
    assert readme.written(new, "new", readme.RESULTS) == new


MARKS = {"results": readme.RESULTS, "kernels": readme.KERNELS, "operators": readme.OPERATORS}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("letters", ["", "b", "bee"])
def test_missing_or_doubled_marks_are_refused(letters, marks):
    begin_or_end = {"b": marks[0], "e": marks[1]}
    text = "".join(begin_or_end[letter] for letter in letters)
    with pytest.raises(ValueError, match="once each"):
        readme.written(text, "new", marks)


def test_the_readme_is_in_step_with_the_committed_results(committed, monkeypatch):
    monkeypatch.setattr(project, "ROOT", committed)
    assert readme.main(["--check"]) == 0


def test_a_run_on_this_machine_does_not_change_the_readme(data, tmp_path, monkeypatch):
    """What lies in reports/local is not published."""
    assert not report.read(FEW, "nano", committed=True).results
    shutil.copytree(tmp_path / project.LOCAL, tmp_path / "reports", dirs_exist_ok=True)
    changed = project.read_json(project.result("clear"))
    changed["quality"]["error"]["value"] += 0.05
    project.write_json(project.result("clear", write=True), changed)
    assert readme.table(report.read(FEW, "nano", committed=True)) == readme.table(data)
    assert readme.table(report.read(FEW, "nano")) != readme.table(data)


def test_every_module_is_in_the_readmes_tree(committed):
    text = (committed / "README.md").read_text()
    folders = ("", "world", "surgery", "distillation", "evaluation")
    names = set()
    for folder in folders:
        names |= {path.name for path in (committed / "linattn" / folder).glob("*.py")}
    names -= {"__init__.py"}
    missing = {name for name in names if name not in text}
    assert not missing, f"{missing} have no phrase in the README"


def test_the_lines_for_library_users_run(tmp_path, monkeypatch):
    """They run as they stand, offline, in a folder that has only data and reports beside it."""
    text = (project.ROOT / "README.md").read_text()
    section = text.partition("## As a library")[2].partition("\n## ")[0]
    for name in ("data", "reports"):
        (tmp_path / name).symlink_to(project.ROOT / name)
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block, scope)
    assert len(scope["pictures"]) == 2
    assert scope["large"].shape == (2, 3, 128, 128)
    assert (tmp_path / "my-student" / "linattn.safetensors").is_file()


def test_the_readme_says_what_every_operator_is_and_does():
    table = operators.table()
    for operator in OPERATORS.values():
        assert f"| `{operator.name}` | {operator.paper} | {operator.gist} |" in table
        assert operator.about
        assert operator.text
