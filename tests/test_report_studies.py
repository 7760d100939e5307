"""Side studies in the report: shown when their result and their module are there, and never in its way."""

import sys
import types

import pytest
import synthetic_results
from pages import check

from linattn import project, report
from linattn.report import studies

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
    made = types.ModuleType("side_study_of_a_test")
    made.sections = sections
    made.__spec__ = types.SimpleNamespace(name="side_study_of_a_test")
    monkeypatch.setitem(sys.modules, "side_study_of_a_test", made)


SHOWN = [("At other sizes", '<p>Twice the side, <a href="https://example.org">elsewhere</a>.</p>')]


def test_a_study_with_result_and_module_is_a_section_of_the_first_page(root, monkeypatch):
    result(root)
    module(monkeypatch, lambda: SHOWN)
    page = check(report.index_html(report.read(FEW, "nano")))
    assert "#study-resolution-at-other-sizes" in page.links
    assert "Twice the side, elsewhere." in page.text


def test_with_several_teachers_it_stands_on_the_first_page_alone(root, monkeypatch):
    result(root)
    module(monkeypatch, lambda: SHOWN)
    data = report.read({**FEW, "sd-lit": synthetic_results.ALL["sd-lit"]}, "nano")
    assert "At other sizes" in check(report.index_html(data)).text
    assert "At other sizes" not in report.teacher_html(data, "text")


@pytest.mark.parametrize("there", ["result", "module", "neither"])
def test_half_a_study_is_not_shown(root, monkeypatch, there):
    if there == "result":
        result(root)
    elif there == "module":
        module(monkeypatch, lambda: SHOWN)
    assert studies.read() == []


def test_a_study_that_breaks_is_named_and_the_report_is_made(root, monkeypatch):
    def broken():
        raise KeyError("sides <1>")

    result(root)
    module(monkeypatch, broken)
    page = check(report.index_html(report.read(FEW, "nano")))
    assert "The study resolution cannot be shown (KeyError: 'sides <1>')" in page.text


def test_a_missing_parent_package_is_a_missing_module(root, monkeypatch):
    result(root)
    monkeypatch.setattr(studies, "STUDIES", {"resolution": "no_such_package.report"})
    assert studies.read() == []


def test_plugins_and_resolution_have_their_places():
    assert studies.STUDIES == {"plugins": "linattn.plugins.report", "resolution": "linattn.resolution"}
