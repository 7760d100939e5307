"""This machine's run beside the committed one: rows that ran here, and figures that agree."""

import re
import shutil

import pytest
import synthetic_results
from pages import check

from linattn import project, report
from linattn.report import agreement

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "lit")}
BOTH = {**FEW, "sd-lit": synthetic_results.TEXT["sd-lit"]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Write both runs with the same numbers."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    synthetic_results.write_all(BOTH)
    for folder in ("results", "runs"):
        shutil.copytree(tmp_path / project.LOCAL / folder, tmp_path / "reports" / folder)
    return tmp_path


def change(name, key, **measure):
    path = project.result(name)
    result = project.read_json(path)
    result["quality"][key] |= measure
    project.write_json(path, result)


def remove(*names):
    for name in names:
        project.result(name).unlink()
        project.run_result(name).unlink(missing_ok=True)


def read(students=FEW):
    return report.read(students, "nano")


def of(data, name):
    return next(row for row in agreement.of_teacher(data).rows if row.name == name)


def test_the_same_numbers_agree_in_every_row(root):
    data = read().only
    rows = agreement.of_teacher(data).rows
    references = {"teacher", "chance", "teacher, 8 steps"}
    assert {row.name for row in rows} >= {*references, *FEW, "clear, not distilled"}
    assert all(row.same and row.agrees for row in rows)
    assert "apart" not in agreement.summary(data, agreement.of_teacher(data))


def test_a_figure_inside_both_intervals_agrees_without_being_the_same(root):
    here = project.read_json(project.result("clear"))["quality"]["error"]
    change("clear", "error", value=here["value"] + 0.1 * (here["high"] - here["value"]))
    row = of(read().only, "clear")
    assert row.agrees
    assert not row.same


@pytest.mark.parametrize("side", ["here", "committed"])
def test_an_interval_that_misses_the_other_value_disagrees_from_either_side(root, side):
    """The wide interval holds the value of the narrow one, which does not hold the other's."""
    error = project.read_json(project.result("clear"))["quality"]["error"]
    value = error["value"] + 0.5 * (error["high"] - error["value"])
    if side == "here":
        change("clear", "error", value=value, low=value - 1e-6, high=value + 1e-6)
    else:
        change("clear", "error", value=value)
        path = project.published("results/clear.json")
        result = project.read_json(path)
        narrow = {"low": error["value"] - 1e-6, "high": error["value"] + 1e-6}
        result["quality"]["error"] |= narrow
        project.write_json(path, result)
    data = read().only
    assert not of(data, "clear").agrees
    assert "apart is clear" in agreement.summary(data, agreement.of_teacher(data))


def test_rounding_of_a_perfect_copy_is_no_disagreement(root):
    """Untrained softmax differs from its teacher by rounding, which depends on the processor."""
    for folder, value in ((project.local, 1e-13), (project.published, 4e-13)):
        result = project.read_json(folder("results/softmax.json"))
        result["undistilled"]["error"] |= {"value": value, "low": 0.9 * value, "high": 1.1 * value}
        project.write_json(folder("results/softmax.json"), result)
    assert of(read().only, "softmax, not distilled").agrees


def test_a_cost_has_no_interval_and_must_be_equal(root):
    result = project.read_json(project.result("clear"))
    result["cost"]["core_macs"] += 1
    project.write_json(project.result("clear"), result)
    assert not of(read().only, "clear").agrees


def test_a_teacher_that_was_not_run_here_has_the_committed_rows(root):
    remove("teacher-text", "chance-text", "sd-lit")
    data = read(BOTH)
    text = data.parts["text"]
    assert text.all_published
    assert not text.failures
    assert text.results["sd-lit"]["quality"]
    assert text.chance
    summary = "sd-nano was not run here: its rows are the committed run's."
    assert summary in agreement.summaries(data)
    assert "the committed run, not run here" in check(report.index_html(data)).text


def test_one_student_that_was_not_run_here_is_marked_and_not_compared(root):
    remove("lit")
    data = read().only
    assert data.published == {"lit"}
    assert "lit" not in {row.name for row in agreement.of_teacher(data).rows}
    assert agreement.summary(data, agreement.of_teacher(data)).endswith("not run here is lit.")
    notes = [row.note for row in report.table(read()).rows if row.name == "lit"]
    assert notes == ["committed run", ""]


def test_a_student_that_failed_here_is_not_replaced_by_the_committed_one(root):
    remove("lit")
    failure = {"error": "the loss became NaN at step 12"}
    project.write_json(project.run_result("lit", write=True), failure)
    data = read().only
    assert "NaN" in data.failures["lit"]
    summary = agreement.summary(data, agreement.of_teacher(data))
    assert summary.endswith("committed and without a result here is lit.")


@pytest.mark.parametrize("content", ["null", "[]", "3", '"x"', "{", "{}"])
@pytest.mark.parametrize("name", ["clear", "teacher-class", "chance-class", "anatomy-class"])
@pytest.mark.parametrize("run", [project.local, project.published], ids=["here", "committed"])
def test_a_damaged_file_breaks_only_its_own_row(root, run, name, content):
    run(f"results/{name}.json").write_text(content)
    data = read().only
    assert {"softmax", "lit"} <= set(data.results)
    assert "clear" in data.failures or "clear" in data.results
    assert agreement.summaries(read())


def test_a_teacher_of_another_profile_is_neither_shown_nor_compared(root):
    """Otherwise a tiny run's 8 pictures of two steps are compared with 128 of twenty."""
    for name in ("teacher-text", "chance-text", "teacher-class", "chance-class"):
        path = project.published(f"results/{name}.json")
        project.write_json(path, {**project.read_json(path), "profile": "full"})
    remove("teacher-text", "chance-text", "sd-lit", "anatomy-class")
    project.published("results/sd-lit.json").unlink()
    data = read(BOTH)
    assert data.parts["text"].waiting
    assert not data.parts["class"].anatomy
    compared = {row.name for row in agreement.of_teacher(data.parts["class"]).rows}
    assert not compared & {"teacher", "teacher, 8 steps", "chance"}


def test_a_committed_benchmark_says_that_its_seconds_are_not_of_this_machine(root):
    project.run_result("benchmark-class").unlink()
    assert "nothing was timed on this machine" in check(report.teacher_html(read(), "class")).text


def test_a_committed_result_of_other_settings_is_neither_shown_nor_compared(root):
    path = project.published("results/clear.json")
    project.write_json(path, {**project.read_json(path), "profile": "full"})
    assert "clear" not in {row.name for row in agreement.of_teacher(read().only).rows}
    remove("clear")
    assert "clear" in read().only.failures


def test_the_page_shows_both_values_and_names_what_disagrees(root):
    change("clear", "shape", value=0.123, low=0.122, high=0.124)
    page = report.teacher_html(read(), "class")
    (section,) = re.findall(r'<section aria-labelledby="agreement">.*?</section>', page, re.S)
    assert "<strong>12.3</strong>" in section
    assert "apart is clear" in section
    assert check(page).text.count("same numbers") == len(agreement.of_teacher(read().only).rows) - 1


def test_without_a_committed_run_there_is_no_section_on_agreement(root):
    shutil.rmtree(root / "reports" / "results")
    assert "against the committed run" not in report.teacher_html(read(), "class")
