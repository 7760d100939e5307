"""Side studies in the report: shown where they have a result and a module, never in its way."""

import sys
import types

import numpy as np
import pytest
import synthetic_results
import torch
from pages import check

from linattn import project, report
from linattn.report import studies, studyparts

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear")}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    monkeypatch.setattr(studies, "STUDIES", {"resolution": "side_study_of_a_test"})
    return tmp_path


def result(root):
    path = root / "reports" / "studies" / "resolution.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def module(monkeypatch, sections):
    study = types.ModuleType("side_study_of_a_test")
    study.sections = sections
    study.__spec__ = types.SimpleNamespace(name="side_study_of_a_test")
    monkeypatch.setitem(sys.modules, "side_study_of_a_test", study)


SHOWN = [("At other sizes", '<p>Twice the side, <a href="https://example.org">elsewhere</a>.</p>')]


def test_a_study_with_result_and_module_is_a_section_of_the_first_page(root, monkeypatch):
    result(root)
    module(monkeypatch, lambda file: SHOWN)
    page = check(report.index_html(report.read(FEW, "nano")))
    assert "#study-resolution-at-other-sizes" in page.links
    assert "Twice the side, elsewhere." in page.text


def test_with_several_teachers_a_study_stands_on_the_first_page_alone(root, monkeypatch):
    result(root)
    module(monkeypatch, lambda file: SHOWN)
    data = report.read({**FEW, "sd-lit": synthetic_results.ALL["sd-lit"]}, "nano")
    assert "At other sizes" in check(report.index_html(data)).text
    assert "At other sizes" not in report.teacher_html(data, "text")


@pytest.mark.parametrize("there", ["result", "module", "neither"])
def test_a_study_without_its_result_or_module_is_not_shown(root, monkeypatch, there):
    if there == "result":
        result(root)
    elif there == "module":
        module(monkeypatch, lambda file: SHOWN)
    assert studies.read() == []


def test_a_broken_study_is_named_and_the_report_is_made(root, monkeypatch):
    def broken(file):
        raise KeyError("sides <1>")

    result(root)
    module(monkeypatch, broken)
    page = check(report.index_html(report.read(FEW, "nano")))
    assert "The study resolution cannot be shown (KeyError: 'sides <1>')" in page.text


def test_a_missing_parent_package_is_a_missing_module(root, monkeypatch):
    result(root)
    monkeypatch.setattr(studies, "STUDIES", {"resolution": "no_such_package.report"})
    assert studies.read() == []


def test_the_results_in_git_are_shown(monkeypatch):
    """A result of an older layout would be a failure on the first page."""
    monkeypatch.setenv(project.PIPELINE, "1")  # never what was made by hand
    sections = studies.read()
    assert [section.body for section in sections if 'class="failure"' in section.body] == []
    anchors = [section.anchor for section in sections]
    for name in (name for name in studies.STUDIES if project.study(f"{name}.json").exists()):
        assert any(anchor.startswith(f"study-{name}-") for anchor in anchors), name


# What studies share


def test_reading_a_sheet_returns_the_pictures_written(tmp_path):
    grey = torch.linspace(-0.2, 1.2, 3).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    pictures = {
        ("a", "shown"): grey,
        ("a", "drawn"): torch.ones(3, 3, 32, 32),
        "b": torch.zeros(3, 3, 32, 32),
    }
    studyparts.write_sheet(pictures, tmp_path / "sheet.jpg", quality=85)
    read = studyparts.read_sheet(iter(pictures), tmp_path / "sheet.jpg")
    assert list(read) == list(pictures)
    for name, written in pictures.items():
        assert read[name].shape == (3, 3, 32, 32)
        assert np.abs(read[name] - written.clamp(0, 1).numpy() * 255).max() < 4, name


def test_a_cell_is_a_number_with_its_interval_or_a_dash():
    measure = {"value": 0.5, "low": 0.4, "high": 0.61}
    assert studyparts.cell(measure) == ("50.0", "40.0 to 61.0")
    assert studyparts.cell({**measure, "low": None, "high": None}, 1, 2) == "0.50"
    assert studyparts.cell(dict.fromkeys(measure)) == "–"


def test_a_table_escapes_its_texts_and_each_cell_has_its_columns_title():
    table = studyparts.table('a "b"', ["", "<h>", "i"], [("<r>", ["<1>", ("<2>", "<3> to 4")])])
    assert 'aria-label="a &quot;b&quot;"' in table
    assert '<th scope="col">&lt;h&gt;</th>' in table
    interval = ' <span class="interval">&lt;3&gt; to 4</span>'
    row = f'<td data-label="&lt;h&gt;">&lt;1&gt;</td><td data-label="i">&lt;2&gt;{interval}</td>'
    assert f'<tr><th scope="row">&lt;r&gt;</th>{row}</tr>' in table


def test_a_table_refuses_a_row_that_its_heads_do_not_fit():
    with pytest.raises(ValueError, match="shorter"):
        studyparts.table("a", ["", "one"], [("row", ["1", "2"])])
