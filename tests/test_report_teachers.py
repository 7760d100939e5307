"""The report of several teachers: a table over all, a page for each, teachers without results."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic_results
from pages import Page, check

from linattn import project, report
from linattn.params import Student, Teacher
from linattn.report import figures, limits, overview, plans, ranking, sentences, tables
from linattn.report.figures import curves, overview as overview_figure
from linattn.report.numbers import short
from linattn.report.picture import LETTER, WIDTH

NAMES = (
    "softmax",
    "clear",
    "lit",
    "sd-softmax",
    "sd-lit",
    "sd-linfusion",
    "flux-clear",
    "flux-linfusion",
)
SOME = {name: synthetic_results.ALL[name] for name in NAMES}
TEACHERS = synthetic_results.TEACHERS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with synthetic_results.written(
        tmp_path_factory.mktemp("clone"), SOME, failed="flux-linfusion"
    ) as folder:
        yield folder


def read(students=SOME, teachers=TEACHERS):
    return report.read(students, "nano", show=4, teachers=teachers)


@pytest.fixture(scope="module")
def data(root):
    return read()


@pytest.fixture(scope="module")
def written(data, root):
    return report.write(data, root / "reports")


def page(written, name):
    return (written.parent / "pages" / f"{name}.html").read_text()


def words_of(text):
    return " ".join(
        re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.S)).split()
    )


# Reading


def test_roles_come_in_the_order_in_which_params_first_names_them(root):
    turned = {name: SOME[name] for name in ("flux-clear", "sd-lit", "clear")}
    assert list(read(turned).parts) == ["text-joint", "text", "class"]
    names = [teacher.name for teacher in read(turned).parts.values()]
    assert names == ["flux-nano", "sd-nano", "dit-nano"]


def test_a_teacher_that_no_student_names_is_not_shown(root):
    assert list(read({"clear": SOME["clear"]}).parts) == ["class"]


def test_without_params_the_result_files_name_the_teacher(root):
    names = [teacher.name for teacher in read(teachers=None).parts.values()]
    assert names == ["dit-nano", "sd-nano", "flux-nano"]


def test_two_roles_with_one_folder_get_different_names(root):
    same = dict.fromkeys(TEACHERS, TEACHERS["class"])
    names = [teacher.name for teacher in read(teachers=same).parts.values()]
    assert names == ["dit-nano (class)", "dit-nano (text)", "dit-nano (text-joint)"]


def test_a_teacher_has_the_anatomy_and_the_benchmark_that_were_made_of_it(data):
    for role, teacher in data.parts.items():
        assert bool(teacher.anatomy) == (role == "class")
        assert bool(teacher.benchmark) == (role == "class")
        assert ("anatomy" in teacher.pictures) == (role == "class")


def test_the_anatomy_of_a_teacher_that_reads_captions_says_how_it_reads_them(root):
    anatomy = project.read_json(project.result("anatomy-class"))
    path = project.result("anatomy-text", write=True)
    names = [f"{layer}: 8 x 8" for layer in anatomy["layers"]]
    project.write_json(path, {**anatomy, "text": "By cross-attention.", "layer_names": names})
    html = report.teacher_html(read(), "text")
    path.unlink()
    assert "need similar rows. By cross-attention." in html
    assert "Anatomy of the teacher" in html


def test_a_teachers_folder_says_what_its_prompts_are_whatever_its_role_is_called(root):
    renamed = {"video": TEACHERS["text-joint"]}
    students = {"flux-clear": {**SOME["flux-clear"], "teacher": "video"}}
    part = read(students, renamed).parts["video"]
    assert part.captioned
    assert part.prompts_in_words == "captions, read by joint attention"
    assert not read().parts["class"].captioned
    assert read().parts["text"].prompts_in_words == "captions, read by cross-attention"


def test_before_any_row_a_folder_says_what_it_reads_and_that_no_judge_knows_it(root, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "unet").mkdir()
    project.write_json(tmp_path / "model_index.json", {})
    unet = {"attention_head_dim": 2, "block_out_channels": [8]}
    project.write_json(tmp_path / "unet" / "config.json", unet)
    foreign = {"mine": Teacher(source=str(tmp_path))}
    part = read({"mine-lit": {"operator": "lit", "teacher": "mine"}}, foreign).parts["mine"]
    assert part.prompts_in_words == "captions, read by cross-attention"
    assert not part.judged
    (tmp_path / "tokenizer").rmdir()
    part = read({"mine-lit": {"operator": "lit", "teacher": "mine"}}, foreign).parts["mine"]
    assert part.prompts_in_words == "class labels"
    project.write_json(tmp_path / "card.json", {"gate": {}})
    part = read({"mine-lit": {"operator": "lit", "teacher": "mine"}}, foreign).parts["mine"]
    assert part.judged


def test_a_result_of_another_teacher_is_refused(root):
    moved = {"clear": {**SOME["clear"], "teacher": "text"}}
    assert "teacher 'class'" in read(moved).failures["clear"]
    other = {**TEACHERS, "text": TEACHERS["class"]}
    text = read(teachers=other).parts["text"]
    assert "folder 'sd-nano'" in text.failures["sd-lit"]
    assert "sd-nano, and params.yaml now names dit-nano" in text.teacher_failure


def test_typed_entries_know_their_teacher(root):
    typed = {
        "sd-lit": Student(operator="lit", name="sd-lit", teacher="text", options={"kernel": 5})
    }
    assert read(typed).only.done == ["sd-lit"]


# The first page


def test_the_first_page_begins_with_one_table_grouped_by_teacher(written, data):
    text = written.read_text()
    headings = re.findall(r'<h2 id="([^"]+)"', text)
    assert headings[:3] == ["table", "findings", "ideas"]
    shown = [row[0]["text"].strip() for row in check(text).rows[1:]]
    references = ["teacher", "teacher, 8 steps", "chance"]
    expected = [
        *("dit-nano", *references, "softmax", "clear", "lit"),
        *("sd-nano", *references, "sd-softmax", "sd-lit", "sd-linfusion"),
        *("flux-nano", *references, "flux-clear", "flux-linfusion"),
        "Idea",
    ]
    pairs = list(zip(shown, expected, strict=False))
    assert [(text, name) for text, name in pairs if not text.startswith(name)] == []
    assert [group.page for group in report.table(data).groups] == [
        f"pages/teacher-{role}.html" for role in ("class", "text", "text-joint")
    ]


def test_best_is_bold_among_the_methods_of_each_teacher(data):
    best = {}
    for group in report.table(data).groups:
        best[group.heading] = [row.name for row in group.rows if row.cells and row.cells[0].best]
    assert best == {"dit-nano": ["lit"], "sd-nano": ["sd-lit"], "flux-nano": []}  # of one, none


def test_marks_of_two_things_are_empty_where_prompts_are_labels(data):
    table = report.table(data)
    relation = [column.key for column in table.columns].index("relation")
    cells = {row.name: row.cells[relation].text for row in table.rows if row.cells}
    assert cells["clear"] == "–"
    assert all(cells[name] != "–" for name in ("sd-lit", "flux-clear"))
    chances = [row.cells[relation].text for row in table.rows if row.name == "chance"]
    assert chances == ["–", "25.0", "25.0"]


def test_every_link_of_every_page_leads_somewhere(written):
    pages = [written, *(written.parent / "pages").glob("*.html")]
    assert len(pages) == 1 + len(TEACHERS) + len(SOME)
    for path in pages:
        seen = check(path.read_text())
        for link in seen.links:
            if link[0] == "#":
                assert link[1:] in seen.ids, (path.name, link)
            else:
                assert (path.parent / link).is_file(), (path.name, link)


def test_a_failed_student_of_any_teacher_is_named_on_the_first_page(written):
    rows = {row[0]["text"].split()[0]: row for row in Page(written.read_text()).rows if row}
    assert rows["flux-linfusion"][1]["text"].startswith("failed: the loss became NaN at step 12")
    assert "Failed and not compared: flux-linfusion." in words_of(written.read_text())


def test_sizes_that_hold_for_all_teachers_stand_there_once(data):
    first, halves = report.all_sizes(data)
    assert first.startswith("128 pictures a row")
    assert halves.startswith("Half of the pictures of sd-nano and flux-nano show one thing")


def ranked(name, *students):
    """Return what `of_all` needs of a teacher whose students are ranked in this order."""
    entries = {student: {"operator": student.rpartition("-")[2]} for student in students}
    return SimpleNamespace(name=name, students=entries, ranked=list(students))


DIT, POOLED, UNET = (
    ("dit", "lit", "clear"),
    ("dit", "pool", "lit", "clear"),
    ("sd", "sd-lit", "sd-clear"),
)
AGREEMENT = {
    "they differ": (
        [DIT, ("sd", "sd-clear", "sd-lit")],
        ["closest are lit to dit and sd-clear to sd."],
    ),
    "they agree": ([DIT, UNET], ["closest are lit to dit and sd-lit to sd."]),
    "a winner only one has": ([POOLED, UNET], ["closest are lit to dit and sd-lit to sd."]),
    "nothing in common": ([("dit", "lit"), ("sd", "sd-clear")], []),
    "one alone": ([("dit", "lit", "clear"), ("sd",)], []),
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_the_closest_ideas_are_named_among_those_that_the_teachers_share(name, monkeypatch):
    teachers, endings = AGREEMENT[name]
    for module in (ranking, sentences):
        monkeypatch.setattr(module, "closest", lambda teacher: teacher.ranked)
    parts = {teacher[0]: ranked(*teacher) for teacher in teachers}
    findings = sentences.of_all(SimpleNamespace(parts=parts))
    among = "Of the ideas that dit and sd share (clear and lit)"
    assert findings == [f"{among}, {ending}" for ending in endings]


def test_ideas_are_compared_where_two_teachers_have_them(data):
    lines = {}
    for operator, ideas in tables.ideas(data):
        lines[operator] = [idea and (idea.student, idea.best) for idea in ideas]
    assert lines == {
        "clear": [("clear", False), None, ("flux-clear", True)],
        "lit": [("lit", True), ("sd-lit", True), None],
        "linfusion": [None, ("sd-linfusion", False), None],
    }
    assert tables.ideas(read({name: SOME[name] for name in ("clear", "lit")})) == []


# A teacher's page


@pytest.mark.parametrize("role", TEACHERS)
def test_a_teachers_page_has_all_sections(written, data, role):
    seen = check(page(written, f"teacher-{role}"))
    teacher = data.parts[role]
    sections = {"findings", "table", "pictures", "distance", "cost", "training", "students"}
    sections |= {"machine", "limits"}
    sections |= {"time", "anatomy", "maps", "plan"} if role == "class" else set()
    assert {link[1:] for link in seen.links if link[0] == "#"} - {"content"} == sections
    assert teacher.name in seen.title
    assert all(f"../pages/{name}.html" in seen.links for name in teacher.students)
    others = set(SOME) - set(teacher.students)
    assert not any(f"../pages/{name}.html" in seen.links for name in others)


def test_captions_stand_above_the_pictures_and_in_their_alt_texts(written):
    text = page(written, "teacher-text")
    captions = [scene.caption for scene in synthetic_results.scenes("text")[:4]]
    assert all(f"<span>{caption}</span>" in text for caption in captions)
    assert any(alt.endswith("; ".join(captions) + ".") for alt in Page(text).alts)
    assert "asks for the same caption" in text
    assert "asks for the same class" in page(written, "teacher-class")


def test_a_student_is_compared_with_its_own_teacher(written, data):
    text = page(written, "sd-lit")
    assert "one student of sd-nano" in check(text).title
    assert '<a href="../pages/teacher-text.html" aria-current="true">sd-nano</a>' in text
    assert "sd-linfusion.html" in text
    assert "flux-clear.html" not in text


def test_an_operator_has_the_same_colour_for_every_teacher(data):
    assert data.looks["clear"] == data.looks["flux-clear"]
    assert data.looks["softmax"] == data.looks["sd-softmax"]


def test_marks_of_two_things_stand_beside_the_teacher_and_guessing(data):
    colours, relation = sentences._two_things(data.parts["text"])
    assert colours.startswith("Both colours of two things, right most often: sd-lit 75.9\xa0% (")
    assert relation.endswith("guessing 25.0\xa0%.")
    assert list(sentences._two_things(data.parts["class"])) == []


def test_limits_of_captions_stand_only_where_there_are_captions(data):
    labels, captions = (limits.of_teacher(data.parts[role]) for role in ("class", "text"))
    assert limits.PAIRS in captions
    assert limits.PAIRS not in labels
    assert set(limits.of_all(data)) == {*captions, limits.TEACHERS}


# Not everything there


def test_a_role_without_any_result_is_waiting_and_not_failed(root, written):
    with_mediator = {**SOME, "pix-lit": {"operator": "lit", "teacher": "text-other"}}
    data = read(with_mediator)
    text = words_of(check(report.index_html(data)).text)
    assert "no row yet, nor one of pix-lit: make repro makes them" in text
    assert "Nothing of text-other is here yet" in text
    assert "pix-lit (no result)" in text
    page_of_teacher = check(report.teacher_html(data, "text-other"))
    assert page_of_teacher.rows == []
    assert "Nothing of text-other is here yet" in words_of(page_of_teacher.text)


def test_without_its_teachers_row_students_are_shown_all_the_same(root, tmp_path):
    paths = [
        project.result("teacher-text"),
        project.result("chance-text"),
        project.pictures("teacher-text"),
    ]
    contents = {path: path.read_bytes() for path in paths}
    try:
        for path in paths:
            path.unlink()
        data = read()
        pages = [report.index_html(data), report.teacher_html(data, "text")]
        assert report.write(data, tmp_path).exists()
    finally:
        for path, content in contents.items():
            path.write_bytes(content)
    for text in pages:
        assert "The teacher's own row is missing" in words_of(check(text).text)
    assert data.parts["text"].done == ["sd-softmax", "sd-lit", "sd-linfusion"]
    assert data.parts["text"].captions  # the results of the students name them


def test_the_same_data_gives_the_same_bytes(written, root):
    again = report.write(read(), root / "again")
    for page in ("index.html", "pages/teacher-text.html", "pages/sd-lit.html"):
        assert (written.parent / page).read_bytes() == (again.parent / page).read_bytes(), page


def test_the_first_page_stays_small(written):
    assert written.stat().st_size < 1.5 * 2**20


# Notebooks


def test_titles_of_notebooks_name_their_teacher_or_student(root, data):
    for name in (
        "02_sample/text",
        "03_anatomy/class",
        "05_evaluate/teacher-text",
        "04_distill/sd-lit",
    ):
        project.executed(name, write=True).write_text("{}")
    assert list(report.executed(data)) == [
        "dit-nano: What the teacher's attention looks like",
        "sd-nano: What students learn from",
        "sd-nano: The teacher's row",
        "sd-lit: distillation",
    ]
    only = read({name: SOME[name] for name in ("sd-softmax", "sd-lit")})
    assert next(iter(report.executed(only))) == "What students learn from"


def test_a_teachers_page_links_its_own_notebooks(data):
    titles = (
        "sd-nano: The teacher's row",
        "sd-lit: distillation",
        "clear: distillation",
        "dit-nano: The teacher's row",
    )
    links = [
        {"title": title, "href": f"pages/{number}.html"} for number, title in enumerate(titles)
    ]
    shown = Page(report.teacher_html(data, "text", links)).links
    numbered = [link for link in shown if re.search(r"/\d\.html", link)]
    assert numbered == ["../pages/0.html", "../pages/1.html"]


# The first screen


def test_the_finding_names_who_is_closest_to_each_teacher(data):
    sentence = sentences.headline(data)
    assert sentence == (
        "No idea was tried with every teacher; closest are lit to dit-nano (6.5\u00a0%), "
        "sd-lit to sd-nano (5.0\u00a0%) and flux-clear to flux-nano (10.0\u00a0%)."
    )


def test_of_ideas_that_were_tried_with_every_teacher_none_need_be_closest(root):
    chosen = {name: synthetic_results.ALL[name] for name in ("clear", "lit", "flux-clear")}
    chosen["flux-lit"] = {**synthetic_results.ALL["flux-clear"], "operator": "lit"}
    data = report.read(chosen, "nano", teachers=TEACHERS)
    result = data.parts["text-joint"].results["flux-clear"]
    worse = {**result["quality"]["error"], "value": 0.9, "low": 0.8, "high": 1.0}
    quality = {**result["quality"], "error": worse}
    data.parts["text-joint"].failures.clear()
    del result["tally"]
    data.parts["text-joint"].results["flux-lit"] = {**result, "quality": quality}
    assert sentences.headline(data) == (
        "No one idea comes closest to every teacher: lit to dit-nano (6.5\u00a0%) and "
        "flux-clear to flux-nano (10.0\u00a0%)."
    )


def test_students_whose_intervals_touch_share_the_first_place(root):
    chosen = {name: synthetic_results.ALL[name] for name in ("clear", "lit", "sd-lit")}
    data = report.read(chosen, "nano", teachers=TEACHERS)
    error = data.results["lit"]["quality"]["error"]
    data.results["clear"]["quality"]["error"] = {**error, "value": error["high"]}
    del data.results["clear"]["tally"]
    assert sentences.headline(data) == (
        "lit can be closest to every teacher: lit or clear to dit-nano (6.5\u00a0%) and "
        "sd-lit to sd-nano (5.0\u00a0%)."
    )


def test_of_one_teacher_with_results_nothing_is_said_of_all(root):
    chosen = {name: synthetic_results.ALL[name] for name in ("clear", "lit", "sd-lit")}
    data = report.read(chosen, "nano", teachers=TEACHERS)
    data.parts["text"].failures["sd-lit"] = "not trained"
    assert sentences.headline(data) == "Closest to dit-nano: lit (6.5\u00a0%)."


def test_an_only_student_is_not_marked_as_the_best(root):
    data = report.read({"lit": SOME["lit"]}, "nano", teachers=TEACHERS)
    (row,) = (row for row in report.table(data).rows if row.kind == "student")
    assert not any(cell.best for cell in row.cells)


def test_without_a_method_there_is_no_finding_and_no_picture(root):
    data = report.read({"softmax": SOME["softmax"]}, "nano", teachers=TEACHERS)
    assert sentences.headline(data) == ""
    assert overview.plot(data) is None
    assert 'class="lede"' not in report.index_html(data)


def test_the_first_screen_comes_before_every_other_section(written, data):
    for text in (written.read_text(), page(written, "teacher-class")):
        first = text.index('class="first wide"')
        assert text.index('class="lede"') < first < text.index('<nav class="contents"')
        assert text[first:].index("Pictures from the same noise") < text[first:].index("Scatter")


def test_the_first_pictures_are_those_of_each_ideas_closest_student(data):
    described = overview.pictures(data).alt
    assert "dit-nano (teacher, softmax, clear, lit)" not in described, "a control has its own page"
    assert "dit-nano (teacher, clear, lit)" in described
    assert "sd-nano (teacher, lit, linfusion)" in described
    assert ranking.ideas(data.parts["text"]) == {"lit": "sd-lit", "linfusion": "sd-linfusion"}


def test_error_against_cost_is_relative_to_the_teachers_softmax(data):
    described = overview.plot(data).alt
    error, cost = 6.5, synthetic_results.CORE_MACS["lit"] / 100.7e6
    assert f"; lit {short(error)} at {short(cost)}" in described
    assert "softmax" not in described


# On a phone


def test_every_cell_names_its_column_since_a_phone_hides_the_heads(written):
    for path in (written, *(written.parent / "pages").iterdir()):
        for cell in re.findall(r"<td\b[^>]*>", path.read_text()):
            labelled = re.search(r'data-label="[^"]+"', cell)
            assert labelled or "colspan" in cell or 'class="none"' in cell, (path.name, cell)


def test_a_table_on_a_phone_is_a_list_of_cards():
    template = Path(__file__).resolve().parents[1] / "reports" / "template"
    style = (template / "style.css").read_text()
    phone = style.partition("@media (max-width: 40rem)")[2].partition("@media print")[0]
    for rule in (
        "td::before { content: attr(data-label)",
        ".scroll, .across { overflow-x: visible",
    ):
        assert rule in phone


def test_long_names_of_many_teachers_do_not_cover_one_another():
    pictures = np.zeros((1, 3, 8, 8))
    names = [f"nobody-knows-teacher-{number}" for number in range(7)]
    picture = figures.blocks({name: {"teacher": pictures} for name in names}, ["teacher"])
    assert all(name in picture.alt for name in names)
    for name in names:
        lines = overview_figure._wrapped(name, (WIDTH - overview_figure.NAMES) / 7).split("\n")
        assert "".join(lines) == name
        assert max(map(len, lines)) * LETTER * 7 < WIDTH - overview_figure.NAMES + 0.1


def test_a_legend_of_many_teachers_has_more_lines_than_one():
    assert curves._columns(["dit-nano", "sd-nano", "flux-nano"]) == 3
    assert curves._columns([f"nobody-knows-{number}" for number in range(7)]) == 3
    assert len(set(overview.MARKERS)) >= 7


# Plans


def test_a_page_shows_the_plans_of_its_teacher_with_what_they_were_measured_on(written):
    text = page(written, "teacher-class")
    assert (
        "16 pictures, noise levels 0.1, 0.3, 0.5, 0.7 and 0.9, seed 3, 50 steps of the layerwise "
        f"stage, commit {synthetic_results.FACTS['commit']}."
    ) in text
    assert "softmax in 0; disc in 1, 2, 3, 4 and 5" in text
    # each rule stands with its better candidate
    assert any("first 16 at 0.49" in alt and "plan 0.5 8 at 0.49" in alt for alt in Page(text).alts)


def test_a_plan_that_changes_with_the_noise_has_an_arrow():
    choice = [["softmax", "disc"], ["disc", "disc"], ["softmax", "disc"]]
    assert plans.in_words(choice) == "softmax → disc in 0 and 2; disc in 1"


def test_a_plan_without_an_error_is_no_point_of_a_logarithmic_axis():
    row = {"budget": 1.0, "cost": 1.0, "error": 0.0, "choice": [["softmax"]]}
    stage = {"losses": {}, "plans": [row], "choices": []}
    assert plans.pictures({"layers": [0], "stages": {"untrained": stage}}) == []
