"""The leaderboard: order, marks, contributed rows, the page and the Markdown."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_results
from pages import check
from PIL import Image

from linattn import digests, params, project, report
from linattn.report import contributed, leaderboard, sheet

NAMES = ("softmax", "clear", "clear-pool", "lit", "linfusion", "sd-softmax", "sd-lit", "flux-clear")
SOME = {name: synthetic_results.ALL[name] for name in NAMES}
CODE = '"""An operator\'s file; nothing here imports it."""\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Write the results of a whole run once."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "ROOT", folder)
        patch.setenv(project.PIPELINE, "1")
        synthetic_results.write_all(SOME, failed="linfusion")
        for name in NAMES:
            if (path := project.run_result(name)).exists() and name != "linfusion":
                project.write_json(path, {**project.read_json(path), "memory": 1_600_000})
    return folder


@pytest.fixture
def root(finished, tmp_path, monkeypatch):
    """Return a copy of the finished run that a test may change."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    return tmp_path


def contribute(root, name="bands", error=0.063, where="reports/rows", digest=None, **changes):
    """Write a row as `make row` leaves it, with an invented error."""
    folder = root / where / "class" / name
    entry = {"operator": "bands", "teacher": "class", "rows": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic_results.ERRORS, name, (0.5, error))
        patch.setitem(synthetic_results.CORE_MACS, name, 9e6)
        result = synthetic_results.result(name, entry)
    teacher = project.read_json(project.result("teacher-class"))
    result |= {"pictures": teacher["pictures"], "identity": "0", **changes}
    digest = digest or digests.of_text(CODE)
    result["file"] = {"name": "bands.py", "class": "Bands", "digest": digest, "paper": ""}
    project.write_json(folder / "result.json", result)
    run = {"facts": synthetic_results.FACTS, "memory": 1_700_000, "seconds": {"distill": 40.0}}
    project.write_json(folder / "run.json", run)
    (folder / "operator.py").write_text(CODE)
    frames = np.zeros((8, 3, 64, 64), np.uint8)
    sheet.write({"pictures": frames}, folder / "pictures.png", 8)
    return folder


def read(committed=False, students=SOME, profile="nano"):
    teachers = synthetic_results.TEACHERS
    return report.read(students, profile, teachers=teachers, committed=committed)


def board(role="class", **options):
    data = read(**options)
    return leaderboard.board(data.parts[role], data.contributed[role])


# Order and marks
# ---------------------------------------------------------------------------------------------


def test_methods_are_ranked_by_their_error(root):
    assert [(line.rank, line.name) for line in board().ranked] == [
        ("1", "clear-pool"),
        ("2", "lit"),
        ("3", "clear"),
    ]


def test_controls_and_the_teacher_have_no_rank(root):
    unranked = [line for line in board().lines if not line.rank]
    assert [line.name for line in unranked] == ["softmax", "dit-nano"]
    assert unranked[0].source == "control: keeps softmax"
    assert unranked[1].source == "the teacher"
    assert unranked[1].cells[0].text == "–"


def test_a_row_whose_interval_reaches_the_best_is_marked_as_in_the_reports_table(root):
    errors = {line.name: line.cells[0] for line in board().ranked}
    assert errors["clear-pool"].best
    assert errors["lit"].close  # 6.5 (5.9 to 7.2) reaches 6.0
    assert not errors["clear"].close  # 9.0 (8.1 to 9.9) does not
    table = report.table(read(students={name: SOME[name] for name in NAMES[:4]}))
    column = [c.key for c in table.columns].index("error")
    marks = {row.name: row.cells[column].close for row in table.rows if row.kind == "student"}
    assert marks == {name: cell.close for name, cell in errors.items()}


def test_a_line_has_cost_source_options_and_pictures(root):
    line = board().ranked[0]
    assert [cell.text for cell in line.cells] == ["6.0", "22.1", "1.2", "1.6"]
    assert line.cells[0].interval == "5.4 to 6.6"
    assert line.operator == "clear radius=3 pool=4"
    assert line.source == "CLEAR, arXiv 2412.16112"
    assert line.page == "pages/clear-pool.html"
    assert board().strip(line).alt.startswith("8 pictures drawn by clear-pool")


def test_a_failed_student_is_named_with_its_reason(root):
    assert board().refused == (("linfusion", "the loss became NaN at step 12"),)


def test_a_student_of_a_papers_recipe_has_another_budget_and_no_line(root):
    path = project.result("lit")
    project.write_json(path, {**project.read_json(path), "recipe": "published"})
    students = {**SOME, "lit": {**SOME["lit"], "recipe": "published"}}
    assert "lit" not in [line.name for line in board(students=students).lines]


def test_teachers_have_boards_of_their_own(root):
    assert [each.data.role for each in leaderboard.boards(read())] == [
        "class",
        "text",
        "text-joint",
    ]
    assert [line.name for line in board("text").ranked] == ["sd-lit"]


def test_where_nothing_ran_there_is_no_board(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    assert leaderboard.markdown_table(read()) == leaderboard.EMPTY
    assert "No row is there yet" in leaderboard.leaderboard_html(read())


# Contributed rows
# ---------------------------------------------------------------------------------------------


def test_a_contributed_row_stands_where_its_error_puts_it(root):
    contribute(root)
    ranked = board().ranked
    assert [line.name for line in ranked] == ["clear-pool", "bands", "lit", "clear"]
    line = ranked[1]
    assert [cell.text for cell in line.cells] == ["6.3", "9.0", "1.2", "1.7"]
    assert (line.rank, line.source) == ("2", "contributed: bands.py")
    assert line.cells[0].close
    assert line.drawn.shape == (8, 3, 64, 64)
    assert board().strip(line).alt.startswith("8 pictures drawn by bands")


def test_a_row_made_here_stands_for_the_contributed_one_and_is_not_published(root):
    contribute(root)
    contribute(root, error=0.05, where="reports/local/rows")
    (line,) = [line for line in board().ranked if line.name == "bands"]
    assert (line.rank, line.source) == ("1", "made on this machine: bands.py")
    (entry,) = read(committed=True).contributed["class"]
    assert entry.in_git


def test_a_contributed_row_of_another_file_is_refused_by_name(root):
    folder = contribute(root)
    (folder / "operator.py").write_text("# another file\n")
    assert "bands" not in [line.name for line in board().lines]
    name, reason = board().refused[-1]
    assert name == "bands"
    expected, actual = digests.of_text(CODE), digests.of_text("# another file\n")
    assert f"digest {expected}, and operator.py has {actual}" in reason
    assert reason in leaderboard.markdown_table(read()).replace("\n", " ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"student": "other"}, "its result is of other, and its folder is bands"),
        ({"teacher": "text"}, "its result is of text, and its folder is in class"),
        ({"quality": {"error": {"value": None}}}, "its result has no error"),
        ({"quality": {}}, "its result has no error"),
        ({"pictures": {"steps": 50}}, r"it was evaluated on \{'steps': 50\}, and the rows here on"),
        ({"seeds": [0, 1]}, r"it was trained with .*seeds \(0, 1\), and the rows here .* \(0,\)"),
        (
            {"training": {"steps": 900, "batch": 32}},
            "it was trained with .*steps 900.*the rows here .*steps 90,",
        ),
    ],
)
def test_a_contributed_row_of_other_settings_is_refused_with_both_values(root, changes, reason):
    contribute(root, **changes)
    refused = dict(board().refused)
    assert re.search(reason, refused["bands"])
    assert "bands" not in [line.name for line in board().lines]


def test_a_contributed_row_with_the_name_of_a_student_is_refused(root):
    contribute(root, name="lit", error=0.01)
    assert dict(board().refused)["lit"].startswith("its name is that of a student")
    assert [line.name for line in board().ranked] == ["clear-pool", "lit", "clear"]


def test_a_damaged_row_is_refused_and_a_draft_is_no_row(root):
    folder = contribute(root)
    (folder / "result.json").write_text("{")
    (folder.parent / ".next.draft").mkdir()
    assert [name for name, _ in board().refused] == ["linfusion", "bands"]


def test_a_strip_that_is_no_sheet_is_refused_and_the_page_stands(root):
    folder = contribute(root)
    Image.new("RGB", (512, 64)).save(folder / "pictures.png")
    assert "pictures.png does not say which pictures it holds" in dict(board().refused)["bands"]
    assert "pictures.png does not say" in leaderboard.leaderboard_html(read())


def test_rows_of_another_profile_are_left_out_by_name(root):
    contribute(root, profile="full")
    assert "bands" not in [line.name for line in board().lines]
    assert board().others == ("bands",)
    assert "Rows of another profile" in leaderboard.leaderboard_html(read())


def test_every_row_in_git_is_whole(committed, monkeypatch):
    monkeypatch.setattr(project, "ROOT", committed)
    settings = params.load("nano")
    rows = contributed.read(settings.teachers, committed=True)
    for role in rows:
        assert [(row.name, row.problem) for row in rows[role] if row.problem] == []
    folders = (committed / "reports" / "rows").glob("*/*")
    assert not [path for path in folders if (path / contributed.STUDENT).exists()]


# The page
# ---------------------------------------------------------------------------------------------


def test_the_page_opens_offline_without_scripts_and_links_its_rows(root):
    contribute(root)
    data = read()
    path = leaderboard.write(data, root / "reports")
    assert path == root / "reports" / "leaderboard.html"
    page = check(path.read_text())
    assert page.title == "Leaderboard: 6 methods, 3 teachers"
    assert len([alt for alt in page.alts if "drawn by bands" in alt]) == 1
    files = {link for link in page.links if link[0] != "#"}
    pages = {f"pages/{name}.html" for name in data.done}
    teachers = {part.page for part in data.parts.values()}
    assert files == {"index.html", "leaderboard.html", *pages, *teachers}


def test_the_page_says_what_is_marked_and_what_is_refused(root):
    text = check(leaderboard.leaderboard_html(read())).text
    words = " ".join(text.split())
    assert "≈ 6.5 5.9 to 7.2" in words
    assert "linfusion : the loss became NaN" in words.replace("linfusion:", "linfusion :")
    assert "make row OPERATOR=path.py TEACHER=role" in words


def test_the_page_of_one_teacher_leads_back_to_the_report(root):
    one = {name: SOME[name] for name in ("clear", "lit")}
    page = check(leaderboard.leaderboard_html(read(students=one)))
    assert "index.html" in page.links
    assert page.title == "Leaderboard: 2 methods"


def test_a_phone_needs_no_scrolling_sideways():
    """Below 40 rem a row is two columns that shrink: nothing there has a width of its own."""
    folder = Path(__file__).resolve().parents[1] / "reports" / "template"
    template = (folder / "leaderboard.html.j2").read_text()
    style = template.partition("{% block style %}")[2].partition("{% endblock %}")[0]
    usual, phone = style.split("@media (max-width: 40rem)")
    assert "grid-template-columns: 1.6rem minmax(0, 1fr)" in phone
    assert re.search(r"\.board dd \{ white-space: normal", phone)
    assert re.search(r"\.board img \{[^}]*width: 100%", usual)
    assert not re.search(r"min-width|[^-]width: \d+(px|rem|em)", style)
    assert "<table" not in template  # a table would be as wide as its longest cells


# Markdown
# ---------------------------------------------------------------------------------------------


def test_markdown_has_a_table_for_each_teacher(root):
    contribute(root)
    text = leaderboard.markdown_table(read())
    assert re.findall(r"^### (.*)$", text, re.M) == ["dit-nano", "sd-nano", "flux-nano"]
    assert "| 1 | clear-pool | `clear radius=3 pool=4` | **6.0** (5.4 to 6.6) | 22.1 |" in text
    assert "| 2 | bands | `bands rows=2` | ≈ 6.3 (" in text
    assert "|  | dit-nano | `softmax` | – | 100.7 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9}


def test_markdown_says_the_budget_once(root):
    text = leaderboard.markdown_table(read())
    assert text.startswith("Profile nano. ")
    assert text.count("128 pictures a row") == 1
    assert text.count("A processor of 2020, 2 cores; torch 2.13.0") == 1
    assert "commit 0123456789ab." in text


def test_the_same_results_give_the_same_text(root):
    contribute(root)
    assert leaderboard.markdown_table(read()) == leaderboard.markdown_table(read())
    assert leaderboard.leaderboard_html(read()) == leaderboard.leaderboard_html(read())


def test_docs_hold_the_committed_leaderboard(committed, monkeypatch):
    monkeypatch.setattr(project, "ROOT", committed)
    settings = params.load("nano")
    data = report.read(settings.students, "nano", teachers=settings.teachers, committed=True)
    assert leaderboard.markdown_table(data) in (committed / "docs/leaderboard.md").read_text()
