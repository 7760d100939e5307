"""Each file of a run in every broken form: its own row or section is named, and the pages go on."""

import copy
import itertools
import json
import random

import numpy as np
import pytest
import synthetic_results
from pages import check

from linattn import outs, params, project, report
from linattn.report import contributed, figures, pages, plans, schema, sheet, stored
from linattn.report.figures import canvas, curves, overview, pictures, tables
from linattn.report.picture import Picture

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear")}
BROKEN = ([], None, 3, "x", {}, float("nan"))
FILES = {
    "results/clear.json": schema.STUDENT,
    "results/teacher-class.json": schema.TEACHER,
    "results/chance-class.json": schema.CHANCE,
    "results/anatomy-class.json": schema.ANATOMY,
    "results/plan-class.json": schema.PLAN,
    "runs/clear.run.json": schema.RUN,
    "runs/benchmark-class.run.json": schema.BENCHMARK,
}
STILL = figures.strip(np.zeros((1, 3, 2, 2), np.uint8), "two pixels").png


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Results of two students; figures are drawn, and not made a PNG, which takes most time."""

    def finish(figure, alt):
        return Picture(STILL, " ".join(alt.split()))

    for module in (canvas, curves, overview, pictures, tables):
        monkeypatch.setattr(module, "finish", finish)
    with synthetic_results.written(tmp_path, FEW) as folder:
        yield folder


def read():
    return report.read(FEW, "nano", show=2, teachers=synthetic_results.TEACHERS)


def sentences(content):
    """Return all that a report says of broken files, by row; None is of no row."""
    data = content.only
    return {**data.failures, "teacher": data.teacher_failure, None: " ".join(data.problems)}


def places(value, place=()):
    """Yield the path of every value; of a list its first and last stand for all."""
    yield place
    keys = list(value) if isinstance(value, dict) else []
    if isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if value else []
    for key in keys:
        yield from places(value[key], (*place, key))


def replaced(content, place, value):
    if not place:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def replacements(content):
    """Yield the content with each of its values replaced by each of BROKEN."""
    for place, value in itertools.product(places(content), BROKEN):
        yield place, value, replaced(content, place, value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("value", BROKEN, ids=repr)
def test_a_file_of_another_kind_is_named_and_the_pages_go_on(root, file, value):
    path = project.local(file)
    path.write_text(json.dumps(value))
    content = read()
    named = [row for row, text in sentences(content).items() if path.name in text]
    owner = {"clear": ["clear"], "teacher-class": ["teacher"]}.get(path.name.split(".")[0], [None])
    if (file, value) == ("runs/clear.run.json", {}):  # a run may say nothing of itself
        assert not named
        return
    assert named == owner
    assert "softmax" in content.only.done
    if value == []:
        page = report.index_html(content)
        check(page)
        assert path.name in page


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("quality", "shape"), 0.9, "quality.shape is 0.9"),
        (("quality", "shape"), "x", "quality.shape is 'x'"),
        (("quality", "shape", "value"), float("nan"), "NaN is no number"),
        (("quality", "shape", "low"), None, "both ends of its interval"),
        (("quality",), None, "quality is None"),
        (("confusion", 3), [1, 2], "it has not 10 rows of 10 counts"),
        (("by_noise", "error"), [], "noise has 5, error has 0"),
        (("by_noise", "noise"), "x", "by_noise.noise is 'x'"),
        (("training", "curve", "loss"), [1.0], "step has 9, loss has 1"),
        (("cost", "core_macs"), -1, "cost.core_macs is -1"),
        (("captions",), 3, "captions is 3"),
        (("seeds",), "x", "seeds is 'x'"),
        (("quality", "error", "value"), 10**40, "quality.error.value is 1"),
    ],
    ids=str,
)
def test_a_wrong_value_of_a_student_is_named_with_its_place(root, place, value, says):
    path = project.result("clear")
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, value)))
    failure = read().failures["clear"]
    assert says in failure
    assert "reports/local/results/clear.json is damaged" in failure
    assert "remove it, and make repro makes it again" in failure


def test_a_student_that_no_judge_saw_has_no_confusion_and_is_whole(root):
    path = project.result("clear")
    path.write_text(json.dumps({**json.loads(path.read_text()), "confusion": []}))
    assert "clear" in read().only.done


@pytest.mark.parametrize(
    ("file", "key", "row"),
    [
        ("results/clear.json", "quality", "clear"),
        ("results/clear.json", "cost", "clear"),
        ("results/teacher-class.json", "pictures", "teacher"),
        ("results/anatomy-class.json", "noise", None),
        ("results/plan-class.json", "stages", None),
        ("runs/benchmark-class.run.json", "rows", None),
    ],
)
def test_a_key_that_the_pages_need_is_missed_by_name(root, file, key, row):
    path = project.local(file)
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    assert f"it lacks {key}" in sentences(read())[row]


@pytest.mark.parametrize("text", ["[" * 100_000, "\x00", "{", "", '{"a": 1e999}'], ids=range(5))
def test_a_text_that_is_no_json_is_one_failed_row(root, text):
    project.result("clear").write_text(text)
    assert "clear.json is damaged" in read().failures["clear"]


def test_a_table_of_layers_that_is_ragged_is_left_out(root):
    path = project.result("anatomy-class")
    content = json.loads(path.read_text())
    content["teacher"]["share"][2].pop()
    path.write_text(json.dumps(content))
    said = sentences(read())[None]
    assert "teacher.share has not 6 layers of 5 noise levels" in said


def test_losses_of_too_few_layers_are_left_out_and_so_is_their_section(root):
    path = project.result("plan-class")
    content = json.loads(path.read_text())
    content["stages"]["layerwise"]["losses"]["disc"].pop()
    path.write_text(json.dumps(content))
    teacher = read().only
    assert "stages.layerwise.losses.disc has not 6 layers" in " ".join(teacher.problems)
    assert not teacher.plan


def test_a_damaged_run_file_costs_a_plan_its_commit_alone(root):
    project.run_result("plan-class").write_text("[]")
    teacher = read().only
    assert teacher.plan
    assert "plan-class.run.json is damaged" in " ".join(teacher.problems)
    assert "commit" not in plans.sentence(teacher.plan, teacher.plan_run)


def test_no_replaced_value_ends_the_report(root):
    """Every replacement is refused by name or drawn; of those that are drawn, a sample is."""
    drawn = []
    for file, expected in FILES.items():
        whole = json.loads(project.local(file).read_text())
        assert not schema.problem(whole, expected), file
        for place, value, content in replacements(whole):
            if value == value and not schema.problem(content, expected):
                drawn.append((file, place, value, content))
    assert len(drawn) > 300
    for file, place, value, content in random.Random(18).sample(drawn, 12):
        path = project.local(file)
        before = path.read_text()
        path.write_text(json.dumps(content))
        try:
            report.write(read(), root / "drawn")
        except Exception as error:
            raise AssertionError(f"{file}: {place} = {value!r}") from error
        path.write_text(before)


# Pictures


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flipped, cut])
@pytest.mark.parametrize(
    ("file", "row"), [("clear", "clear"), ("teacher-class", "teacher"), ("anatomy-class", None)]
)
def test_damaged_pictures_are_named_in_their_own_row(root, file, row, damage):
    damage(project.pictures(file))
    content = read()
    said = sentences(content)
    assert f"data/pictures/{file}.safetensors is damaged" in said[row]
    assert [name for name, text in said.items() if text] == [row]
    check(report.index_html(content))


FRAMES = np.zeros((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"undistilled": FRAMES}, "it has no pictures"),
        ({"pictures": FRAMES[0]}, "pictures has shape (3, 8, 8)"),
        ({"pictures": FRAMES[:, :1]}, "three channels"),
        ({"pictures": FRAMES * np.nan}, "no finite number"),
        ({"pictures": FRAMES[:0]}, "pictures has shape (0, 3, 8, 8)"),
        ({"pictures": FRAMES, "labels": np.zeros(3, int)}, "4 pictures and 3 labels"),
        ({"pictures": FRAMES}, "its teacher's (3, 64, 64)"),
    ],
    ids=range(7),
)
def test_pictures_of_another_shape_are_one_failed_row(root, arrays, says):
    synthetic_results.save_arrays(arrays, project.pictures("clear"))
    content = read()
    assert says in content.failures["clear"]
    assert content.only.done == ["softmax"]


def test_a_class_that_the_small_world_lacks_is_named_by_its_number(root):
    for name in ("teacher-class", *FEW):
        frames = np.zeros((2, 3, 64, 64), np.uint8)
        arrays = {"pictures": frames, "labels": np.array([-1, 4000])}
        synthetic_results.save_arrays(arrays, project.pictures(name))
    assert report.column_names(read().only) == ["class -1", "class 4000"]


def published(root):
    """Copy the results of this machine as the committed ones, and drop its own."""
    for path in sorted(project.local("").rglob("*.json")):
        target = project.published(path.relative_to(project.local("")).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (root / "reports" / "pictures").mkdir()
    for name in ("teacher-class", *FEW):
        arrays = stored.Files().pictures(project.pictures(name), "pictures").content
        sheet.write(arrays, project.published(f"pictures/{name}.png"), 2)


def test_a_broken_sheet_of_git_is_one_failed_row_with_gits_remedy(root):
    published(root)
    assert not any(sentences(read()).values())
    path = project.published("pictures/clear.png")
    path.write_bytes(path.read_bytes()[:200])
    content = read()
    assert "reports/pictures/clear.png is damaged" in content.failures["clear"]
    assert "git checkout HEAD -- reports/pictures/clear.png" in content.failures["clear"]
    assert content.only.done == ["softmax"]


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"sets": [], "labels": []}', '{"sets": ["a"]}'])
def test_a_sheet_that_says_something_else_is_damaged(tmp_path, text):
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(sheet.TEXT, text)
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        sheet.read(tmp_path / "a.png")


def test_a_broken_committed_file_beside_a_run_here_is_named_and_not_compared(root):
    path = project.published("results/clear.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
    content = read()
    assert "clear" in content.only.done
    assert "reports/results/clear.json is damaged" in sentences(content)[None]
    assert "git checkout HEAD -- reports/results/clear.json" in sentences(content)[None]


# What DVC finds damaged


def test_what_dvc_finds_damaged_is_a_failed_row_of_the_report(root, monkeypatch):
    damage = {
        "data/pictures/clear.safetensors": "its pictures were edited",
        "reports/local/results/anatomy-class.json": "the anatomy was edited",
    }
    monkeypatch.setattr(outs, "running", lambda: "report")
    monkeypatch.setattr(outs, "damaged", lambda stage: damage)
    said = sentences(read())
    assert said == {
        "clear": "its pictures were edited",
        "teacher": "",
        None: "the anatomy was edited",
    }


# Teachers


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", "3", '{"num_attention_heads": "x"}'])
def test_a_teachers_broken_config_is_named_in_its_own_row(root, text):
    path = root / "data" / "teachers" / "dit-nano" / "transformer" / "config.json"
    path.write_text(text)
    teachers = synthetic_results.TEACHERS
    students = {**FEW, "sd-lit": synthetic_results.TEXT["sd-lit"]}
    content = report.read(students, "nano", show=2, teachers=teachers)
    if text != '{"num_attention_heads": "x"}':  # the page names no shape
        failure = content.parts["class"].teacher_failure
        assert "data/teachers/dit-nano/transformer/config.json is damaged" in failure
        assert "copy or save the pipeline whole" in failure
    assert "config.json" not in content.parts["text"].teacher_failure
    with pytest.raises(ValueError, match=r"dit-nano/transformer/config\.json is damaged"):
        params.shape_of(teachers["class"])
    assert params.shape_of(teachers["text"]) == (4, 32, False)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_teachers_broken_card_is_named_in_its_own_row(root, text):
    (root / "data" / "teachers" / "dit-nano" / "card.json").write_text(text)
    content = read()
    assert "data/teachers/dit-nano/card.json is damaged" in content.only.teacher_failure
    check(report.index_html(content))


# Rows of operators' files, and notebooks


@pytest.mark.parametrize("value", BROKEN, ids=repr)
@pytest.mark.parametrize("file", [contributed.RESULT, contributed.RUN])
def test_a_contributed_row_of_another_kind_is_refused_by_name(root, file, value):
    folder = root / "reports" / "rows" / "class" / "mine"
    folder.mkdir(parents=True)
    for name in (contributed.RESULT, contributed.RUN):
        (folder / name).write_text("{}")
    (folder / file).write_text(json.dumps(value))
    row = contributed.read_row(folder, in_git=True)
    assert "rows/class/mine/" in row.problem
    assert "is damaged" in row.problem


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"cells": 3, "nbformat": 4}'])
def test_a_broken_notebook_is_a_page_that_says_so(tmp_path, monkeypatch, text):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    path = tmp_path / "reports" / "notebooks" / "a.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert "reports/notebooks/a.ipynb is damaged" in pages.notebook_html(path, "A notebook")


def test_the_committed_files_are_all_whole():
    for path in sorted((project.ROOT / "reports" / "pictures").glob("*.safetensors")):
        assert stored.Files().pictures(path, "picture").problem == "", path.name
