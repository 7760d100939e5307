"""The stage of plans: what it measures is what surveys measure, and rules keep the budgets."""

import dataclasses
import math

import pytest
import tiny
import torch
from ruamel.yaml import YAML
from test_planning import Drawn

from linattn import params, project, teachers
from linattn.attention import mixed
from linattn.evaluation import diagnostics
from linattn.evaluation.distance import prediction_error
from linattn.planning import bets, candidates, choices, comparison, stage
from linattn.planning.front import UNITS
from linattn.surgery.conversion import converted

BUDGETS = (0.5, 0.8)


@pytest.fixture(scope="module")
def teacher():
    return teachers.Teacher(tiny.pipeline(layers=3), {}, "tiny")


@pytest.fixture(scope="module")
def settings():
    """Return the numbers of tiny, with two ranges of the noise and one step of training."""
    numbers = params.load("tiny")
    planning = dataclasses.replace(numbers.plan, until=(0.5,), budgets=BUDGETS)
    return planning, dataclasses.replace(numbers.distill, batch=2)


@pytest.fixture(scope="module")
def result(teacher, settings):
    return stage.of_teacher(teacher, Drawn(), *settings)


def rows(result, name, stage="untrained"):
    return result["stages"][stage][name]


# The stage


def test_both_stages_have_a_plan_for_every_budget(result):
    assert list(result["stages"]) == ["untrained", "layerwise"]
    for name in result["stages"]:
        planned = rows(result, "plans", name)
        assert [plan["budget"] for plan in planned] == list(BUDGETS)
        assert all(0 < plan["cost"] <= plan["budget"] for plan in planned)
        assert all([len(labels) for labels in plan["choice"]] == [2, 2, 2] for plan in planned)


def test_a_layerwise_stage_alters_what_a_layer_loses(result):
    before, after = (rows(result, "losses", name) for name in result["stages"])
    assert list(before) == ["disc", "disc-pool"]
    assert before != after


def test_the_error_of_a_rule_is_that_of_the_student_with_its_layers(teacher, result, settings):
    planning, _ = settings
    row = next(row for row in rows(result, "choices") if len(row["layers"]) == 1)
    entry = dataclasses.replace(
        planning.candidates[row["candidate"]], layers=tuple(row["layers"]), teacher="tiny"
    )
    student = converted(teacher.model, entry, planning.seed)
    options = {"count": planning.pictures, "seed": planning.seed}
    judge = prediction_error(teacher, student, Drawn(), planning.noise, **options)
    assert row["error"] == pytest.approx(judge["mean"]["value"], rel=1e-4)


def test_a_rule_replaces_as_few_layers_as_the_budget_lets_it(result):
    costs, dense = result["costs"], 1 / 3
    for row in rows(result, "choices"):
        of_layer = costs[row["candidate"]][0]
        count = len(row["layers"])
        spent = 1 - count * (dense - of_layer)
        assert row["cost"] == pytest.approx(spent, abs=3 / UNITS)
        assert spent <= row["budget"] + 3 / UNITS < spent + dense - of_layer


def test_a_stage_writes_its_result_and_its_run_file(teacher, result, monkeypatch, tmp_path):
    loaded = params.load("tiny")
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(params, "load", lambda profile: loaded)
    monkeypatch.setattr(stage.roles, "load", lambda settings, role: teacher)
    monkeypatch.setattr(stage, "Samples", lambda folder: Drawn())
    monkeypatch.setattr(stage, "of_teacher", lambda *arguments: result)
    with project.pipeline():
        written = stage.run("text")
        assert project.read_json(project.result("plan-text")) == written
        run = project.read_json(project.run_result("plan-text"))
    assert (written["teacher"], written["profile"]) == ("text", "tiny")
    assert "seconds" not in written
    assert run["facts"]["hardware"]
    assert run["seconds"]["measure"] >= 0


def test_a_budget_that_no_layer_can_keep_is_refused_before_anything_is_trained(
    teacher, settings, monkeypatch
):
    planning, training = settings
    monkeypatch.setattr("linattn.planning.survey.Judge", None)
    least = dataclasses.replace(planning, budgets=(0.5, 0.01))
    with pytest.raises(ValueError, match=r"the cheapest plan costs 0.\d+ .* budget is 0.010"):
        stage.of_teacher(teacher, Drawn(), least, training)


# Rules


@pytest.mark.parametrize(
    ("name", "layers"),
    [("interleaved", [0, 5]), ("first", [0, 1]), ("last", [4, 5]), ("diagnostics", [2, 3])],
)
def test_a_rule_names_as_many_layers_as_are_wanted(name, layers):
    assert choices.rules(6, [3, 2, 0, 1, 4, 5])[name](2) == layers


def test_a_model_of_one_layer_has_every_rule_but_diagnostics():
    assert {name: rule(1) for name, rule in choices.rules(1).items()} == {
        "interleaved": [0],
        "first": [0],
        "last": [0],
    }


def test_a_rule_that_cannot_keep_a_budget_has_no_row():
    class Dear:
        def units(self, choice):
            return UNITS

    measured = Dear()
    measured.judge = measured.composite = measured
    measured.layers, measured.ranges = [0, 1], [0]
    assert comparison.fewest(measured, "disc", choices.rules(2)["first"], 0.5) == []


# Diagnostics


def table(measure, by_layer):
    """Return rows as diagnostics have them, of two noise levels around a layer's mean."""
    return [
        {"measure": measure, "head": None, "layer": layer, "value": value and value + shift}
        for layer, value in enumerate(by_layer)
        for shift in (-0.1, 0.1)
    ]


@pytest.mark.parametrize(
    ("operator", "ranked"),
    [("clear", [1, 2, 0]), ("linfusion", [1, 2, 0]), ("lit", []), ("axial", [])],
)
def test_layers_are_ranked_by_what_an_operator_bets_on(operator, ranked):
    rows = [*table("share", [0.2, 0.9, 0.5]), *table("rank", [3.0, 1.0, 2.0])]
    assert bets.ranking(operator, [*rows, *table("similarity", [None] * 3)]) == ranked


def test_rankings_are_those_of_the_whole_table_of_diagnostics(teacher):
    entries = candidates.read({"disc": ("clear", {"radius": 2}), "cross": ("axial", {})})
    ranked = bets.rankings(teacher, Drawn(), entries, (0.5,), 2, 3)
    latents, labels = Drawn().first(2)
    whole = diagnostics.anatomy(teacher, latents, labels, (0.5,), seed=3)
    assert ranked == {"softmax": [], "disc": bets.ranking("clear", whole), "cross": []}
    assert sorted(ranked["disc"]) == [0, 1, 2]


@pytest.mark.parametrize("operator", bets.BETS)
def test_every_bet_is_a_measure_that_diagnostics_have(operator):
    grid = mixed.Grid(4, 4)
    measure = diagnostics.measures(grid)[bets.BETS[operator][0]]
    assert math.isfinite(measure(torch.full((1, 2, 16, 16), 1 / 16)).mean())


# Students of plans


def parts_of(entry):
    """Return the parts of an entry or of a plan with all of their keys, in one order."""
    return sorted((mixed.read("parts", part) for part in entry["parts"]), key=str)


def departed(students, role, result):
    """Name the students plan-50, plan-25, .. whose parts are not those of the untrained plan."""
    plans = {f"plan-{100 * plan['budget']:g}": plan for plan in rows(result, "plans")}
    entries = {name: entry for name, entry in students.items() if entry["teacher"] == role}
    return [
        name
        for name, plan in plans.items()
        if name in entries and parts_of(entries[name]) != parts_of(plan)
    ]


def test_a_student_of_a_plan_has_the_parts_that_were_published(committed):
    """A plan is of numbers that were measured; who writes it down may mistype it."""
    content = YAML(typ="safe").load(committed / "params.yaml")
    for role in content["teachers_of"]["plan"]:
        path = committed / "reports" / "results" / f"{project.plan_row(role)}.json"
        assert not departed(content["students"], role, project.read_json(path))


def test_a_student_with_other_parts_than_its_plan_is_named(result):
    whole = {"parts": rows(result, "plans")[0]["parts"], "teacher": "class"}
    other = {"parts": [{"operator": "clear", "options": {"radius": 7}}], "teacher": "class"}
    assert departed({"plan-50": whole, "plan-80": other}, "class", result) == ["plan-80"]
    assert departed({"plan-50": other}, "text", result) == []
