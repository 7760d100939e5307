import math

import kinds
import pytest
import tiny
import torch

from linattn import explore, families, params, project, surgery
from linattn.attention.grid import Grid
from linattn.explore import menu
from linattn.params import Student
from linattn.report.picture import Picture
from linattn.surgery.conversion import converted
from linattn.teachers import Teacher

ENTRIES = {"clear": Student(operator="clear", name="clear", teacher="class", options={"radius": 2})}


@pytest.fixture(scope="module")
def teacher():
    card = {"steps": 2, "guidance": 2.0, "side": 32, "labels": list(tiny.LABELS)}
    return Teacher(tiny.pipeline(), card, "tiny")


@pytest.fixture(scope="module")
def student(teacher):
    return explore.student("clear, not distilled", teacher, ENTRIES)


def test_a_trace_has_one_belief_and_one_input_a_step(teacher):
    trace = explore.trace(teacher, 3, seed=5, steps=3)
    assert trace.steps == len(trace.beliefs) == 3
    # guidance's unconditional half is left out
    assert trace.inputs[0]["hidden_states"].shape[0] == 1
    assert trace.inputs[0]["class_labels"].tolist() == [3]
    noise = [trace.noise(step) for step in range(3)]
    assert noise == sorted(noise, reverse=True)
    assert trace.beliefs.min() >= 0
    assert trace.beliefs.max() <= 1


def test_teacher_and_student_start_from_the_same_noise(teacher, student):
    first, second = (
        explore.trace(teacher, 1, steps=2),
        explore.trace(teacher, 1, steps=2, model=student),
    )
    assert torch.equal(first.inputs[0]["hidden_states"], second.inputs[0]["hidden_states"])
    assert not torch.equal(first.inputs[1]["hidden_states"], second.inputs[1]["hidden_states"])
    assert explore.distance(first, first) == [0.0, 0.0]
    assert max(explore.distance(first, second)) > 0


def test_a_trace_leaves_the_model_as_it_was(teacher):
    hooks = len(teacher.model._forward_pre_hooks)
    explore.trace(teacher, 0, steps=1)
    assert len(teacher.model._forward_pre_hooks) == hooks


def test_attention_of_a_token_is_its_row_of_the_map(teacher):
    trace = explore.trace(teacher, 2, steps=2)
    weights = explore.attention(teacher.model, trace, 1, 0, token=7)
    assert weights.shape[1:] == (trace.grid.height, trace.grid.width)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(len(weights)), atol=1e-5)
    full_map = surgery.attention_map(teacher.model, 0, **trace.inputs[1])
    assert torch.allclose(weights.flatten(1), full_map[0, :, 7].float(), atol=1e-6)


def test_a_window_looks_no_farther_than_its_radius(teacher, student):
    trace = explore.trace(teacher, 2, steps=2, model=student)
    grid, token = trace.grid, 0
    weights = explore.attention(student, trace, 0, 0, token).mean(0)
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    assert weights[(y**2 + x**2) >= 4].abs().max() == 0
    assert math.isclose(weights.sum(), 1, abs_tol=1e-5)


def test_the_student_is_a_copy(teacher, student):
    assert all(layer.operator is None for layer in families.layers(teacher.model))
    assert all(layer.operator is not None for layer in families.layers(student))


def test_an_untrained_student_is_the_reports(teacher):
    """The same weights whatever was drawn before, and those that the first seed of the recipe
    begins with.
    """
    entry = Student(operator="linfusion", name="lin", initialise="mlp_only")
    first, second = (
        explore.student("lin, not distilled", teacher, {"lin": entry}).state_dict()
        for _ in range(2)
    )
    wanted = converted(teacher.model, entry, params.load().distill.seeds[0]).state_dict()
    other = converted(teacher.model, entry, 99).state_dict()
    assert all(
        torch.equal(first[name], second[name]) and torch.equal(first[name], wanted[name])
        for name in wanted
    )
    assert not all(torch.equal(first[name], other[name]) for name in wanted)


def test_a_head_or_their_mean_is_chosen():
    weights = torch.arange(8.0).reshape(2, 2, 2)
    assert torch.equal(explore.head(weights, None), weights.mean(0))
    assert torch.equal(explore.head(weights, 1), weights[1])
    # a student with fewer heads than the teacher
    assert torch.equal(explore.head(weights, 3), weights[1])


@pytest.mark.parametrize(
    ("step", "layer", "token", "what"),
    [(9, 0, 0, "step 9"), (0, 99, 0, "layer 99"), (0, 0, -1, "token -1")],
)
def test_a_step_layer_or_token_that_does_not_exist_is_named(teacher, step, layer, token, what):
    with pytest.raises(ValueError, match=what):
        explore.attention(teacher.model, explore.trace(teacher, 0, steps=1), step, layer, token)


def test_an_unknown_student_is_named_with_its_neighbour(teacher):
    with pytest.raises(ValueError, match="clear"):
        explore.student("claer", teacher, ENTRIES)


def test_distilled_students_come_first_and_controls_last(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    entries = {"softmax": Student(operator="softmax", name="softmax"), **ENTRIES}
    assert explore.students(entries) == ["clear, not distilled", "softmax, not distilled"]
    (tmp_path / "reports" / "students" / "softmax").mkdir(parents=True)
    assert explore.students(entries)[0] == "softmax"


def test_token_colours_follow_the_rows():
    picture = torch.zeros(3, 4, 6)
    picture[0, :2, :2] = 1  # red, above on the left
    colours = explore.token_colours(picture, Grid(2, 3))
    assert colours == ["#ff0000"] + ["#000000"] * 5


# Other families


CAPTION = "a red ring above a blue disc on white"


def reader(kind):
    card = {"steps": 2, "guidance": 2.0, "side": 32, "text_length": 16}
    return Teacher(kinds.pipeline(kind), card, kind)


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_a_caption_is_traced_like_a_class(kind):
    made = reader(kind)
    trace = explore.trace(made, CAPTION, steps=2)
    assert trace.label == CAPTION
    assert len(trace.beliefs) == trace.steps == 2
    assert all(len(inputs["encoder_hidden_states"]) == 1 for inputs in trace.inputs)
    noise = [trace.noise(step) for step in range(2)]
    assert 1 >= noise[0] > noise[1] >= 0
    other = explore.trace(made, "a yellow moon on black", steps=2)
    assert not torch.equal(
        trace.inputs[0]["encoder_hidden_states"], other.inputs[0]["encoder_hidden_states"]
    )


@pytest.mark.parametrize("kind", ["unet", "sdxl", "pixart", "flux"])
def test_a_trace_records_the_conditional_half_of_the_batch(kind):
    """The recorded call gives the prediction that the guided draw had for the caption, before
    guidance.
    """
    made, answers = reader(kind), []
    handle = made.model.register_forward_hook(
        lambda module, args, output: answers.append(output[0][:1].clone())
    )
    trace = explore.trace(made, CAPTION, steps=1)
    handle.remove()
    with torch.no_grad():
        again = made.model(**trace.inputs[0], return_dict=False)[0]
    torch.testing.assert_close(again, answers[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_every_layer_shows_the_token_over_the_same_position(kind):
    made = reader(kind)
    trace = explore.trace(made, CAPTION, steps=1)
    grids = families.grids(made.model, **trace.inputs[0])
    for layer, grid in enumerate(grids):
        weights = explore.attention(made.model, trace, 0, layer, token=trace.grid.picture - 1)
        assert weights.shape[1:] == (grid.height, grid.width)
        full_map = surgery.attention_map(made.model, layer, **trace.inputs[0])[
            0, :, -1, grid.text :
        ]
        assert torch.allclose(weights.flatten(1), full_map.float(), atol=1e-6)
    assert kind != "unet" or len({grid.picture for grid in grids}) > 1
    picture = explore.looking(
        {"teacher": made.model}, {"teacher": trace}, 0, len(grids) // 2, trace.grid.picture - 1
    )
    deep = grids[len(grids) // 2]
    assert f"row {deep.height} of {deep.height}, column {deep.width} of {deep.width}" in picture.alt


@pytest.mark.parametrize(
    ("token", "expected"),
    [(0, 0), (7, 3), (63, 15), (27, 5)],
    ids=["corner", "end of a row", "last", "inside"],
)
def test_the_covering_token_lies_over_the_same_position(token, expected):
    assert explore.covering(token, Grid(8, 8), Grid(4, 4)) == expected
    assert explore.covering(token, Grid(8, 8), Grid(8, 8)) == token


def test_choices_are_classes_or_captions(teacher):
    assert explore.choices(teacher) == [(name, number) for number, name in enumerate(tiny.LABELS)]
    offered = explore.choices(reader("unet"))
    assert all(words == value for words, value in offered)
    two = [" of " in words or " above " in words or " below " in words for words, _ in offered]
    assert two == [bool(number % 2) for number in range(len(offered))]


def test_a_teacher_has_its_own_students_and_an_unnamed_one_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(menu, "_folder_names", lambda: {"class": "dit-nano", "text": "sd-nano"})
    entries = {**ENTRIES, "sd-lit": Student(operator="lit", name="sd-lit", teacher="text")}
    for name in ("clear", "sd-lit"):
        (tmp_path / "reports" / "students" / name).mkdir(parents=True)
    assert explore.students(entries, "dit-nano") == ["clear", "clear, not distilled"]
    assert explore.students(entries, "sd-nano") == ["sd-lit", "sd-lit, not distilled"]
    assert explore.students(entries, "another") == ["clear, not distilled", "sd-lit, not distilled"]


def wider():
    card = {"steps": 2, "guidance": 1.0, "side": 32, "labels": list(tiny.LABELS)}
    return Teacher(tiny.pipeline(layers=3, heads=2), card, "wider")


def explore_student(student):
    """The student for the first teacher, any conversion for another."""
    return lambda name, teacher: (
        student if len(teacher.model.transformer_blocks) == 2 else linearized(teacher)
    )


def linearized(teacher):
    return explore.student("clear, not distilled", teacher, ENTRIES)


def test_the_widget_holds_the_functions_together(teacher, student):
    explorer = explore.Explorer(
        {"tiny": teacher, "wider": wider()}, ["clear"], explore_student(student), steps=2
    )
    before = explorer.maps.value
    assert "alt=" in explorer.pictures.value
    explorer.choose(3)
    assert explorer.maps.value != before
    assert [
        token for token, button in enumerate(explorer.field.children) if button.description.strip()
    ] == [3]
    # a browser keeps the text of an empty one
    assert all(button.description for button in explorer.field.children)
    shown = explorer.pictures.value
    explorer.step.value = 0
    assert explorer.pictures.value != shown
    explorer.seed.value = 4
    assert explorer.traces["teacher"].seed == 4
    explorer.field.children[5].click()
    assert explorer.token == 5
    explorer.teacher.value = "wider"
    assert explorer.layer.max == 2
    assert [value for _, value in explorer.head.options] == [None, 0, 1]


def test_another_teacher_in_the_menu_brings_its_students_and_captions(teacher):
    offered = {"tiny": ["clear, not distilled"], "unet": ["sd-clear, not distilled"]}
    entries = {
        **ENTRIES,
        "sd-clear": Student(operator="clear", name="sd-clear", options={"radius": 2}),
    }
    made = {"tiny": teacher, "unet": reader("unet")}
    explorer = explore.Explorer(
        made, offered.get, lambda name, of: explore.student(name, of, entries), steps=1
    )
    explorer.teacher.value = "unet"
    assert list(explorer.student.options) == offered["unet"]
    assert explorer.traces["teacher"].label == explore.choices(made["unet"])[0][1]
    explorer.layer.value = explorer.layer.max // 2
    assert "alt=" in explorer.maps.value


def test_pictures_say_what_they_show(teacher, student):
    traces = {
        "teacher": explore.trace(teacher, 0, steps=1),
        "clear": explore.trace(teacher, 0, steps=1, model=student),
    }
    models = {"teacher": teacher.model, "clear": student}
    for picture in (explore.beside(*traces.values(), 0), explore.looking(models, traces, 0, 0, 2)):
        assert isinstance(picture, Picture)
        assert "teacher" in picture.alt


@pytest.mark.parametrize("wrong", [-1, 2, 1.5, "0", None, True])
def test_what_is_no_number_of_a_step_is_refused_in_a_sentence(teacher, wrong):
    trace = explore.trace(teacher, 2, steps=2)
    with pytest.raises(ValueError, match="^step "):
        explore.attention(teacher.model, trace, wrong, 0, 0)
    with pytest.raises(ValueError, match="^step "):
        explore.beside(trace, trace, wrong)


@pytest.mark.parametrize("wrong", [-1, 0.5, "0"])
def test_what_is_no_number_of_a_head_is_refused(wrong):
    with pytest.raises(ValueError, match="^head "):
        explore.head(torch.zeros(2, 4, 4), wrong)


def test_traces_of_other_lengths_are_not_compared(teacher):
    first, second = (explore.trace(teacher, 2, steps=steps) for steps in (1, 2))
    with pytest.raises(ValueError, match=r"traces are \(1, 3, .* and \(2, 3, .*as many steps"):
        explore.distance(first, second)
