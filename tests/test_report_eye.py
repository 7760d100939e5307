"""The report of what the eye sees, and of a teacher that the small world's judge cannot mark."""

import copy

import pytest
import synthetic_results
from pages import check

from linattn import report
from linattn.report import (
    charts,
    circumstances,
    columns,
    fewer,
    leaderboard,
    limits,
    sentences,
    tables,
)

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "lit")}
CAPTIONED = {name: synthetic_results.TEXT[name] for name in ("sd-softmax", "sd-lit", "sd-clear")}
EYE = ("eye_distance", "eye_kid", "eye_fid", "cross_eye_distance")
NEW = {*EYE, "density", "draw_macs", "fewer"}
# What is measured of any teacher; the rest are the judge's marks.
ANY = {"error", "psnr", "ssim", *EYE}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with synthetic_results.written(
        tmp_path_factory.mktemp("clone"), {**FEW, **CAPTIONED}
    ) as folder:
        yield folder


def read(students=FEW):
    return report.read(students, "nano", show=4, teachers=synthetic_results.TEACHERS)


def edited(edit, students=FEW):
    """Return the report after `edit` of every section of every result."""
    content = copy.deepcopy(read(students))
    for data in content.parts.values():
        for result in (data.teacher, data.chance, *data.results.values()):
            edit(result)
    return content


def unjudge(result):
    """Leave of a result what is measured of any teacher."""
    for section in ("quality", "undistilled"):
        if section in result:
            result[section] = {k: v for k, v in result[section].items() if k in ANY}
    result.pop("confusion", None)
    result.pop("quick", None)


def unsee(result):
    """Leave of a result what it had before there was an eye."""
    result.pop("fewer", None)
    for section in ("quality", "undistilled", "cost"):
        if section in result:
            result[section] = {k: v for k, v in result[section].items() if k not in NEW}


def keys(content):
    return {column.key for column in tables.of_teacher(content.only).columns}


def written(content, folder):
    first = report.write(content, folder)
    pages = [first, first.parent / leaderboard.FILE, *(first.parent / "pages").iterdir()]
    for page in pages:
        check(page.read_text())
    return "".join(page.read_text() for page in pages)


# What the eye adds


def test_the_tables_have_the_eyes_columns_for_every_student(root):
    table = tables.of_teacher(read().only)
    titles = [column.title for column in table.columns]
    assert {"Eye distance", "Eye KID", "Eye at 2×", "Density"} <= set(titles)
    assert "Eye FID" not in titles  # no row has so many pictures
    shown = [titles.index(title) for title in ("Eye distance", "Eye KID", "Density")]
    for row in table.rows:
        if row.kind in ("student", "control"):
            assert all(row.cells[place].text != "–" for place in shown), row.name


def test_the_teacher_is_at_no_distance_from_itself_and_chance_is_far(root):
    titles = [column.key for column in tables.of_teacher(read().only).columns]
    cells = {row.name: row.cells for row in tables.references(read().only, columns.COLUMNS)}
    place = [column.key for column in columns.COLUMNS].index("eye_distance")
    assert "eye_distance" in titles
    assert cells["teacher"][place].text == "–"
    assert cells["chance"][place].text == "0.600"
    assert cells["teacher, 10 steps"][place].text == "0.090"


def test_quick_marks_and_fewer_steps_are_one_row():
    teacher = {
        "pictures": {"quick_steps": 8},
        "quick": {"shape": {"value": 0.9}},
        "fewer": [
            {"steps": 8, "quality": {"psnr": {"value": 30.0}}, "cost": {"draw_macs": 5}},
            {"steps": 1, "quality": {"psnr": {"value": 9.0}}, "cost": {"draw_macs": 1}},
        ],
    }
    by_steps = fewer.of_teacher(teacher)
    assert list(by_steps) == [8, 1]
    assert by_steps[8]["quality"].keys() == {"shape", "psnr"}
    assert [fewer.name_of(steps) for steps in by_steps] == ["teacher, 8 steps", "teacher, 1 step"]
    assert teacher["quick"].keys() == {"shape"}  # untouched
    assert fewer.of_teacher({}) == {}


def test_the_plot_has_every_student_and_the_teachers_line(root):
    plot = charts.plots(read().only)["cost_eye"]
    for name in (*FEW, "20 steps 0", "10 steps 0.09", "5 steps 0.18", "the teacher in fewer steps"):
        assert name in plot.alt


def test_sentences_say_who_is_nearest_and_what_fewer_steps_buy(root):
    content = edited(_distances)
    (nearest, apart, *_), text = _of_eye(content.only), " ".join(sentences.of_teacher(content.only))
    assert nearest.startswith("To the eye, a network that was trained on photographs, lit draws")
    assert "0.010 (0.005 to 0.015)" in nearest
    assert apart == "Two of the teacher's own pictures are 0.600 (0.580 to 0.620) apart on average."
    assert "Nearer to the teacher's full draw than fewer steps for the same cost: lit." in text
    assert "For the same cost or less, the teacher in fewer steps is nearer than clear." in text


def _distances(result):
    distances = {"lit": (0.01, 0.005), "clear": (0.4, 0.02)}
    if name := result.get("student") if result.get("student") in distances else "":
        result["quality"]["eye_distance"] = synthetic_results.measure(*distances[name])


def _of_eye(data):
    return list(sentences._eye(data))


def test_a_student_cheaper_than_the_fewest_steps_is_not_compared(root):
    def cheapen(result):
        if result.get("student") == "lit":
            result["cost"]["draw_macs"] = 1

    text = " ".join(sentences._fewer_steps(edited(cheapen).only))
    assert "clear" in text
    assert "lit" not in text


# Results from before the eye


def test_results_without_the_eye_render_as_before(root, tmp_path):
    content = edited(unsee)
    assert not keys(content) & NEW
    assert charts.plots(content.only)["cost_eye"] is None
    assert limits.EYE not in limits.of_teacher(content.only)
    text = written(content, tmp_path)
    assert "Eye distance" not in text
    assert "fewer steps" not in " ".join(sentences.of_teacher(content.only))


# A teacher that the judge cannot mark


@pytest.mark.parametrize("students", [FEW, CAPTIONED], ids=["labels", "captions"])
def test_pages_of_an_unjudged_teacher_leave_the_judge_out(root, tmp_path, students):
    content = edited(unjudge, students)
    data = content.only
    assert not data.judged
    assert keys(content) == {*ANY, "core_macs", "density", "added"} - {"eye_fid"}
    text = written(content, tmp_path)
    for word in ("Shape", "Colour", "Relation", "KID world", "the asked shape", "judged, half two"):
        assert word not in text
    assert "Eye distance" in text
    assert "128 pictures a row" in circumstances.sizes(data)
    assert dict(circumstances.counts(data))["Pictures a row"] == "128"


def test_limits_of_an_unjudged_teacher_are_not_the_small_worlds(root):
    shown = limits.of_teacher(edited(unjudge, CAPTIONED).only)
    assert limits.FOREIGN in shown
    small = {limits.WORLD, limits.SIZE, limits.JUDGE, limits.DISTANCES, limits.PAIRS}
    assert not small & set(shown)
    assert limits.FOREIGN not in limits.of_teacher(read().only)


def test_a_judged_and_an_unjudged_teacher_stand_in_one_report(root, tmp_path):
    content = read({**FEW, **CAPTIONED})
    text = content.parts["text"]
    for result in (text.teacher, text.chance, *text.results.values()):
        unjudge(result)
    shown = limits.of_all(content)
    assert {limits.WORLD, limits.FOREIGN, limits.EYE, limits.TEACHERS} <= set(shown)
    assert "Half of the pictures" not in " ".join(circumstances.all_sizes(content))
    written(content, tmp_path)


def test_a_teacher_without_a_result_counts_as_judged(root):
    content = edited(dict.clear)
    assert content.only.judged
