import itertools
import json
import re

import nbformat
import pytest
import synthetic_results
from nbformat import v4
from pages import Page, check

from linattn import intervals, project, report
from linattn.evaluation import evaluation
from linattn.params import Student
from linattn.report import sentences, steps, tables, words

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "linfusion", "lit")}
ANCHORS = (
    *("findings", "table", "pictures", "distance", "cost", "time", "training", "anatomy", "maps"),
    *("plan", "machine", "limits"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with synthetic_results.written(
        tmp_path_factory.mktemp("clone"), FEW, failed="linfusion"
    ) as folder:
        yield folder


@pytest.fixture(scope="module")
def data(root):
    return report.read(FEW, "nano", show=4)


@pytest.fixture(scope="module")
def teacher(data):
    """Return the only teacher of `data`."""
    return data.only


def changed(data, **changes):
    return report.Data(**{**vars(data), **changes})


@pytest.fixture(scope="module")
def written(data, root):
    return report.write(data, root / "reports", {"A notebook": _notebook(root / "executed.ipynb")})


def _notebook(path):
    shown = v4.new_output(
        "display_data", {"text/html": '<img alt="a red disc" src="data:image/png;base64,AAAA">'}
    )
    bare = v4.new_output("display_data", {"image/png": "AAAA"})
    printed = v4.new_output("stream", name="stdout", text="see https://example.org/page and go on")
    cells = [
        v4.new_markdown_cell("# The title\n\nRead [the paper](https://example.org/paper)."),
        v4.new_markdown_cell("## A chapter\n\nSome words, $x^2$."),
        v4.new_code_cell("draw(3)", outputs=[shown, bare, printed]),
    ]
    nbformat.write(
        v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), path
    )
    return path


def test_the_first_page_is_complete_and_fetches_nothing(written):
    page = check(written.read_text())
    for anchor in ANCHORS:
        assert f"#{anchor}" in page.links
    for link in page.links:
        assert link.startswith("#") or (written.parent / link).is_file(), link


@pytest.mark.parametrize("name", FEW)
def test_every_student_has_a_page(written, name):
    page = check((written.parent / "pages" / f"{name}.html").read_text())
    assert name in page.title
    assert "../index.html" in page.links


def test_the_failed_student_is_a_failed_row(written, data):
    rows = {row[0]["text"].strip(): row for row in Page(written.read_text()).rows}
    assert len(rows["linfusion"]) == 2
    assert rows["linfusion"][1]["text"].startswith("failed: the loss became NaN at step 12")
    assert "Failed and not compared: linfusion." in report.findings(data)
    assert "the loss became NaN" in (written.parent / "pages" / "linfusion.html").read_text()


def test_the_best_method_is_bold_also_where_lower_is_better(data, written):
    table = report.table(data)
    rows = {(row.kind, row.name): row for row in table.rows}
    assert [column.better for column in table.columns if column.key in ("error", "shape")] == [
        "lower",
        "higher",
    ]
    for index, column in enumerate(table.columns):
        values = {name: column.read(data.results[name]) for name in ("clear", "lit")}
        pick = max if column.better == "higher" else min
        winner = pick(values, key=lambda name: values[name]["value"])
        assert rows["student", winner].cells[index].best
        loser = {"clear": "lit", "lit": "clear"}[winner]
        same = column.text(values[winner]["value"]) == column.text(values[loser]["value"])
        assert rows["student", loser].cells[index].best == same, column.key
    for row in table.rows:
        if row.kind != "student":
            assert not any(cell.best for cell in row.cells), row.name
    lit = next(row for row in Page(written.read_text()).rows if row[0]["text"].strip() == "lit")
    assert lit[1]["best"]  # the error, lower is better


def test_an_interval_that_reaches_the_best_is_marked():
    column = report.COLUMNS[1]
    cell = tables.cell(column, {"value": 0.9, "low": 0.85, "high": 0.95}, 0.93)
    assert (cell.best, cell.close) == (False, True)
    assert tables.cell(column, {"value": 0.9, "low": 0.85, "high": 0.92}, 0.93).close is False
    assert tables.cell(column, None, 0.93).text == "–"
    assert tables.cell(column, {"value": 0.93, "low": 0.9, "high": 0.95}, 0.93).best


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (0.5, "50.0"), (0.0006, "0.1"), (0.0004, "0.04"), (2e-7, "2e-05")],
)
def test_a_small_share_is_not_written_as_none(value, text):
    assert words.percent(value) == f"{text}\u00a0%"
    assert words.with_interval({"value": value, "low": value, "high": value}) == (
        f"{text}\u00a0% ({text} to {text})"
    )


def test_the_table_has_all_kinds_of_rows(data):
    table = report.table(data)
    assert [group.heading for group in table.groups] == list(words.KINDS.values())
    names = [(row.kind, row.name) for row in table.rows]
    assert names[:5] == [
        ("reference", "teacher"),
        *(("reference", f"teacher, {steps} steps") for steps in (10, 8, 5)),
        ("reference", "chance"),
    ]
    assert ("control", "softmax") in names
    assert ("undistilled", "clear") in names
    lit = next(row for row in table.rows if (row.kind, row.name) == ("student", "lit"))
    assert all(
        cell.interval
        for cell, column in zip(lit.cells, table.columns, strict=True)
        if column.section == "quality"
    )


def test_findings_follow_the_numbers(data):
    text = " ".join(report.findings(data))
    assert "Closest to the teacher's prediction is lit" in text
    assert "The control softmax keeps softmax and trains as the others do" in text
    assert "it moves 0.10\xa0% (" in text
    assert "cannot be told from that control" not in text
    assert "Distillation reduced the error of 2 of 2 methods" in text


def with_error_of_lit(teacher, **error):
    """Give lit an error of .1 % before distillation, and this error after it."""
    lit = teacher.results["lit"]
    quality = {**lit["quality"], "error": {"n": 8, **error}}
    before = {"error": {"value": 0.001}}
    lit = {**lit, "quality": quality, "undistilled": before, "tally": None}
    return changed(teacher, results={**teacher.results, "lit": lit})


def test_a_method_is_nearer_than_the_control_only_where_the_intervals_do_not_touch(teacher):
    below = with_error_of_lit(teacher, value=0.0005, low=0.0004, high=0.0006)
    assert "Nearer to the teacher than that control: lit." in sentences.of_teacher(below)
    touching = with_error_of_lit(teacher, value=0.0005, low=0.0004, high=0.00095)
    assert "By error lit cannot be told from that control." in sentences.of_teacher(touching)


def test_a_method_that_distillation_made_worse_is_named(teacher):
    worse = with_error_of_lit(teacher, value=0.2, low=0.0004, high=0.00095)
    text = " ".join(sentences.of_teacher(worse))
    assert "Closest to the teacher's prediction is clear" in text
    assert "It did not help lit" in text


@pytest.mark.parametrize(
    ("with_conv", "says"),
    [
        (0.004, "intervals overlap, so the order is open"),
        (0.01, "intervals do not touch"),
        (0.001, "intervals do not touch"),
    ],
    ids=["overlapping", "further", "nearer"],
)
def test_the_convolution_moves_softmax_only_where_the_intervals_say_so(with_conv, says):
    def row(value):
        return {
            "quality": {"error": {"value": value, "low": value * 0.9, "high": value * 1.1, "n": 64}}
        }

    students = {
        "softmax": {"operator": "softmax"},
        "softmax-conv": {"operator": "softmax", "conv": 3},
    }
    data = report.Data(
        "nano", students, results={"softmax": row(0.0042), "softmax-conv": row(with_conv)}
    )
    assert says in next(iter(sentences._convolution(data)))


@pytest.mark.parametrize(
    ("right", "different"), [(128, True), (122, False)], ids=["above", "within"]
)
def test_a_student_may_differ_from_its_teacher_by_being_better(teacher, right, different):
    lit, own_row = teacher.results["lit"], teacher.teacher
    student = {**lit, "quality": {**lit["quality"], "shape": intervals.wilson(right, 128)}}
    row = {**own_row, "quality": {**own_row["quality"], "shape": intervals.wilson(120, 128)}}
    shapes = sentences._shapes(changed(teacher, results={"lit": student}, teacher=row))
    assert ("lit cannot be told from the teacher" in " ".join(shapes)) is not different


def test_a_kid_below_zero_is_no_better_than_zero():
    column = next(column for column in report.COLUMNS if column.key == "kid_teacher")
    rows = [
        {"quality": {"kid_teacher": {"value": value, "low": value, "high": 0.01}}}
        for value in (-0.02, 0.0)
    ]
    best = tables._best(column, rows)
    assert [tables.cell(column, column.read(row), best).best for row in rows] == [True, True]


def test_a_slower_operator_is_called_slower():
    rows = [
        {"operator": name, "tokens": n, "seconds": s, "baseline": "dense"}
        for name, n, s in (
            ("dense", 64, 1.0),
            ("lit", 64, 2.0),
            ("dense", 256, 9.0),
            ("lit", 256, 3.0),
            ("clear", 256, 10.0),
        )
    ]
    assert list(sentences._time(report.Data("tiny", FEW, benchmark={"rows": rows}))) == [
        "At 256 tokens one attention call is faster than dense: lit 3.0 times.",
        "Slower than dense at 256 tokens: clear.",
        "Faster at 256 tokens and slower at 64: lit.",
    ]


def test_whole_steps_stand_beside_their_upper_bound(teacher, written):
    table = steps.table(teacher.benchmark["steps"])
    assert table["sizes"] == [256, 1024]
    assert dict(table["lines"]) == {
        "dense": ["4 ms", "4 ms"],
        "attention's share of it": ["25 %", "50 %"],
        "so at most": ["1.33×", "2.00×"],
        "clear": ["1.25× (3.2 ms)", "1.25× (3.2 ms)"],
        "lit": ["0.80× (5 ms)", "0.80× (5 ms)"],
    }
    assert "A whole step" in written.read_text()
    assert steps.table([]) == {"sizes": [], "lines": []}
    lines = steps.in_markdown(teacher.benchmark["steps"]).splitlines()
    assert lines[4] == "| so at most | 1.33× | 2.00× |"


def test_the_path_that_attention_took_is_named_with_its_layers(data):
    runs = {
        "clear": {
            "facts": data.facts,
            "backend": {"a": "triton: a GPU", "b": "triton: a GPU", "c": "torch: wide"},
        },
        "lit": {"facts": data.facts},
    }
    machine = dict(report.machine(report.Data("nano", FEW, runs=runs)))
    assert machine["Attention"] == "2 layers triton: a GPU, 1 layer torch: wide"


def test_the_same_data_gives_the_same_bytes(written, root, data):
    again = report.write(
        report.read(FEW, "nano", show=4), root / "again", {"A notebook": root / "executed.ipynb"}
    )
    first = sorted(
        path.relative_to(written.parent) for path in (written.parent / "pages").iterdir()
    )
    assert len(first) == len(FEW) + 1
    for name in ("index.html", *first):
        assert (written.parent / name).read_bytes() == (again.parent / name).read_bytes(), name


def test_a_removed_student_leaves_the_report_though_its_files_stay(root):
    fewer = {name: entry for name, entry in FEW.items() if name != "clear"}
    page = report.index_html(report.read(fewer, "nano", show=2))
    assert project.result("clear").exists()
    assert not re.search(r"\bpages/clear\.html|pictures drawn by clear", page)


def test_without_any_result_there_is_still_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    index = report.write(report.read(FEW, "tiny"), tmp_path / "reports")
    cells = itertools.chain.from_iterable(check(index.read_text()).rows)
    rows = {"teacher", *FEW}
    assert sum("no result" in cell["text"] for cell in cells) == len(rows)


def test_a_damaged_result_is_a_failure(root):
    path = project.result("clear")
    content = path.read_text()
    try:
        path.write_text(content[:40])
        assert "damaged" in report.read(FEW, "nano").failures["clear"]
    finally:
        path.write_text(content)


def test_the_page_says_why_a_teacher_failed(root):
    path = project.run_result("teacher-class")
    path.write_text(json.dumps({"facts": synthetic_results.FACTS, "error": "evaluate: no room"}))
    try:
        page = report.index_html(report.read(FEW, "nano", show=2))
    finally:
        path.unlink()
    assert "evaluate: no room" in check(page).rows[2][1]["text"]
    assert "own row is missing, so nothing is compared with it (evaluate: no room)" in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"radius": 6}, "radius 4"),
        ({"pool": 2}, "pool None"),
        ({"operator": "lit"}, "operator 'clear'"),
        ({"layers": "every:2"}, "layers 'all'"),
        ({"initialise": "v"}, "initialise 'all'"),
        ({"recipe": "published"}, "recipe 'protocol'"),
    ],
    ids=str,
)
def test_a_result_of_other_settings_is_refused(root, changes, says):
    edited = {**FEW, "clear": {**FEW["clear"], **changes}}
    assert says in report.read(edited, "nano").failures["clear"]
    assert "clear" not in report.read(edited, "nano").done
    assert "profile 'nano'" in report.read(FEW, "tiny").failures["clear"]


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": "every:2"},
        {"layers": (0, 2)},
        {"initialise": "v"},
        {"recipe": "published", "initialise": "mlp_only"},
    ],
    ids=str,
)
def test_a_result_with_further_settings_belongs_to_that_student_alone(root, settings):
    """The report reads the settings as the evaluation writes them."""
    student = Student(
        operator="clear", name="clear", teacher="class", options={"radius": 4}, **settings
    )
    path = project.result("clear")
    content = path.read_text()
    try:
        project.write_json(path, json.loads(content) | evaluation.settings_of(student))
        assert report.read({"clear": student}, "nano").done == ["clear"]
        failure = report.read({"clear": FEW["clear"]}, "nano").failures["clear"]
        for key, value in settings.items():
            assert f"{key} {json.loads(json.dumps(value))!r}" in failure
    finally:
        path.write_text(content)


def test_a_notebook_keeps_its_alt_texts_and_loses_its_addresses(written):
    text = (written.parent / "pages" / "notebook-a-notebook.html").read_text()
    page = check(text)
    assert page.title == "A notebook"
    assert "a red disc" in page.alts
    assert all(page.alts)
    assert "http:" not in text
    assert "https:" not in text
    assert "the paper" in text
    assert "see example.org/page and go on" in text
    assert "#A-chapter" in page.links
    assert "A-chapter" in page.ids


def test_machines_that_differ_are_both_named(teacher):
    other = json.loads(json.dumps(synthetic_results.FACTS))
    other["hardware"]["gpu"] = "an accelerator"
    runs = {**teacher.runs, "clear": {"facts": other}}
    lines = dict(report.machine(changed(teacher, runs=runs)))
    assert "an accelerator (clear)" in lines["Accelerator"]
    assert lines["Commit"] == "0123456789ab"


def test_entries_of_params_and_plain_ones_read_alike(root):
    typed = {
        "clear": Student(operator="clear", name="clear", teacher="class", options={"radius": 4})
    }
    entry = {"operator": "clear", "radius": 4, "teacher": "class"}
    assert report.read(typed, "nano").students == {"clear": entry}
