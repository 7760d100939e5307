import re
import types

import pytest
import synthetic_results
import torch

from linattn import project, readme, report
from linattn.attention import LayerShape
from linattn.grid import Grid

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "linfusion", "lit")}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    synthetic_results.write_all(FEW, failed="linfusion")
    data = report.read(FEW, "nano")
    return data


def rows(data):
    lines = [line for line in readme.table(data).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_student_has_a_row_of_the_same_columns(data):
    titles, _, *body = rows(data)
    assert [row[0].split(":")[0] for row in body] == [
        "teacher",
        "teacher, 8 steps",
        "chance",
        "softmax",
        "clear",
        "linfusion",
        "lit",
    ]
    assert {len(row) for row in body} == {len(titles)}


def test_numbers_are_those_of_the_results(data):
    titles, _, *body = rows(data)
    clear = dict(zip(titles, next(row for row in body if row[0] == "clear"), strict=True))
    assert clear["Error"].startswith("9.0 (")
    assert clear["Error undistilled"] == "23.3"


def test_the_best_method_is_bold_and_a_control_never(data):
    titles, _, *body = rows(data)
    place = titles.index("Error")
    bold = [row[0] for row in body if row[place].startswith("**")]
    assert bold == ["lit"]


def test_a_failed_student_is_named_as_failed(data):
    assert "| linfusion: failed (the loss became NaN at step 12) |" in readme.table(data)


def test_circumstances_name_sizes_seeds_and_machine(data):
    words = readme.circumstances(data)
    for part in ("128 pictures", "seed 1000", "[0]", "A processor of 2020", "torch 2.13.0", "0123456789ab"):
        assert part in words


def test_the_picture_has_a_row_for_the_teacher_and_every_student_that_finished(data):
    picture = readme.picture(data)
    assert all(name in picture.alt for name in ("teacher", "softmax", "clear", "lit"))
    assert "linfusion" not in picture.alt
    assert readme.block(data).startswith(f"![{picture.alt}]({readme.PICTURE})")


def test_pictures_that_are_not_here_are_named(data):
    data.pictures.pop("clear")
    with pytest.raises(FileNotFoundError, match="no pictures of clear.*make repro"):
        readme.block(data)


def test_the_check_needs_neither_pictures_nor_machine(data):
    text = readme.block(data)
    data.pictures, data.facts = {}, {}
    assert readme.in_step(text, data)
    data.results["clear"]["quality"]["error"]["value"] += 0.05
    assert not readme.in_step(text, data)


def test_only_what_stands_between_the_marks_changes():
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    new = readme.written(text, "new")
    assert new == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    assert readme.written(new, "new") == new


@pytest.mark.parametrize("text", ["", f"{readme.BEGIN}\n", f"{readme.BEGIN}{readme.END}{readme.END}"])
def test_missing_or_doubled_marks_are_refused(text):
    with pytest.raises(ValueError, match="once each"):
        readme.written(text, "new")


def test_the_readme_is_in_step_with_the_committed_results():
    assert readme.main(["--check"]) == 0


def test_every_module_is_in_the_readmes_tree():
    text = (project.ROOT / "README.md").read_text()
    modules = {path.name for path in (project.ROOT / "linattn").glob("*.py")} - {"__init__.py"}
    missing = {name for name in modules if name not in text}
    assert not missing, f"{missing} have no phrase in the README"


@pytest.mark.parametrize("grid", [Grid(9, 5), Grid(4, 4), Grid(1, 7)], ids=str)
def test_the_operator_of_contributing_works(grid):
    """The ten lines that a newcomer copies equal their own definition, and are registered by their name alone."""
    text = (project.ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    module = types.ModuleType("bands")
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    operator = module.Bands(LayerShape(width=16, heads=4, head_dim=4), rows=2)
    q, k, v = torch.randn(3, 2, grid.tokens, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(operator.mix(q, k, v, grid), operator.definition(q, k, v, grid), rtol=0, atol=1e-9)
    assert operator.macs(grid) > 0
    with pytest.raises(ValueError, match="rows"):
        module.Bands(LayerShape(width=16, heads=4, head_dim=4), row=2)
