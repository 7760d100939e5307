"""The hours of a real teacher are forwards times operations over a rate."""

import dataclasses

import pytest

from linattn import hours, params, shapes
from linattn.evaluation.macs import counted_macs
from linattn.families.registry import family


def settings_of(role, **teacher):
    """Return settings with one student of few steps, and all numbers countable by head."""
    real = params.load("real")
    entry = dataclasses.replace(real.teacher(role), sample={}, evaluate={}, distill={}, **teacher)
    name = next(name for name in real.of_teacher(role))
    student = dataclasses.replace(real.student(name), recipe="protocol")
    few = {"pictures": 10, "steps": 4}
    return dataclasses.replace(
        real,
        teachers={role: entry},
        students={name: student},
        sample=dataclasses.replace(real.sample, **few),
        distill=dataclasses.replace(real.distill, layerwise_steps=3, steps=5, batch=2, seeds=(0,)),
        evaluate=dataclasses.replace(
            real.evaluate, **few, quick_pictures=6, quick_steps=2, cross_pictures=4, errors=2
        ),
    )


def forward(role, size):
    model = shapes.on_meta(shapes.shape(role).build)
    return 2 * counted_macs(model, inputs=family(model).example(model, size, 1, 0.5))


@pytest.mark.parametrize(
    ("role", "size", "guided"), [("sd15", 64, 2), ("flux", 64, 1), ("dit", 32, 2)]
)
def test_a_teachers_forwards_are_those_that_its_settings_ask_for(role, size, guided):
    if role == "dit":
        real = params.load("real")
        entry = params.Teacher(source="x", side=256, guidance=4.0)
        settings = dataclasses.replace(
            settings_of("sd15"),
            teachers={"dit": entry},
            students={"s": dataclasses.replace(real.student("sd15-clear"), teacher="dit")},
        )
    else:
        settings = settings_of(role)
    picture, counted = forward(role, size), hours.operations(settings, role)
    assert counted.samples == pytest.approx(guided * 10 * 4 * picture)
    levels = len(settings.evaluate.noise)
    row = guided * (10 * 4 + 6 * 2 + 4 * 2 * settings.evaluate.cross**2) + 2 * levels
    assert counted.reference == pytest.approx(row * picture)
    (student,) = counted.students.values()
    assert student == pytest.approx(((3 * 2 + 5 * 4) * 2 + row + 2 * levels) * picture)
    by_size = hours.expected(settings, role)
    assert by_size[24] == pytest.approx(counted.total / hours.RATES[24] / 3600)


def test_checkpointing_costs_a_forward_and_seeds_count_each():
    settings = settings_of("sd15")
    (name,) = settings.students
    once = hours.operations(settings, "sd15").students[name]
    again = dataclasses.replace(settings.distill, checkpointing=True)
    more = hours.operations(dataclasses.replace(settings, distill=again), "sd15").students[name]
    assert more - once == pytest.approx(5 * 2 * forward("sd15", 64))
    twice = dataclasses.replace(settings.distill, seeds=(0, 1))
    both = hours.operations(dataclasses.replace(settings, distill=twice), "sd15").students[name]
    assert 1.9 * once < both < 2 * once


def test_qwens_side_is_counted_in_tokens_as_flux_is():
    real = params.load("real")
    entry = params.Teacher(source="x", side=256)
    student = dataclasses.replace(real.student("sd15-clear"), teacher="qwen", name="s")
    settings = dataclasses.replace(
        settings_of("sd15"), teachers={"qwen": entry}, students={"s": student}
    )
    counted = hours.operations(settings, "qwen")
    assert counted.samples == pytest.approx(10 * 4 * forward("qwen", 16))


def test_a_shape_that_nobody_published_has_no_hours():
    assert hours.operations(params.load("nano"), "class") is None
    assert hours.expected(params.load("nano"), "class") == {}
