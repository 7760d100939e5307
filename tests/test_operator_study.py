"""The study of operators: its students, their rows, and its sections in the report."""

import copy
import dataclasses
import re

import pytest
import synthetic_results
import torch

from linattn import drafts, params, project, reader
from linattn.evaluation import evaluation
from linattn.evaluation.bench import Bench
from linattn.finite import NotFinite
from linattn.studies.operators import report, rows, settings, student

SIZES = {"pictures": 128, "steps": 20, "errors": 64, "seed": 1000}
TRAINING = {"layerwise_steps": 50, "steps": 150, "batch": 16, "samples": 512, "trained": 9}
DIVERGED = "step 3 of 50 of stage layerwise: loss is nan"


@pytest.fixture(scope="module")
def study():
    return settings.load()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    return tmp_path


# Students


WRONG = {
    "a student of params.yaml": (
        {"clear": {"operator": "clear", "teacher": "class"}},
        "students.clear: 'clear' is a student of params.yaml; choose another name",
    ),
    "an unknown operator": (
        {"pisa": {"operator": "piza", "teacher": "class"}},
        r"students.pisa.operator 'piza'.*'pisa'",
    ),
    "an unknown teacher": (
        {"pisa": {"operator": "pisa", "teacher": "clas"}},
        r"students.pisa.teacher 'clas'.*'class'",
    ),
    "no teacher": ({"pisa": {"operator": "pisa"}}, r"students.pisa.teacher ''"),
    "a wrong option": (
        {"pisa": {"operator": "pisa", "teacher": "class", "tile": 0}},
        r"students.pisa.tile is 0: pisa: tile is a whole number from 1 on, not 0",
    ),
    "no mapping": (["pisa"], r"students is \['pisa'\].*mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_student_is_named_with_its_file(case, tmp_path):
    students, message = WRONG[case]
    path = tmp_path / "params.yaml"
    project.write_json(path, {"students": students})  # JSON is YAML
    with pytest.raises(ValueError, match=f"params.yaml: {message}"):
        settings.load(path)


def test_another_key_than_students_is_refused(tmp_path):
    project.write_json(tmp_path / "params.yaml", {"students": {}, "student": {}})
    with pytest.raises(ValueError, match="'student': did you mean 'students'"):
        settings.load(tmp_path / "params.yaml")


def test_students_are_trained_by_the_numbers_of_params_yaml(study):
    common = params.load()
    for name in study.names:
        assert study.params.recipe(name) == common.of(study.params.student(name).teacher).distill
    assert not set(study.names) & set(common.students)


def test_an_unknown_student_is_refused_with_the_nearest_name(study):
    with pytest.raises(ValueError, match=r"unknown student of the study 'piza'.*'pisa'"):
        student.make("piza", study)


# One row


@pytest.fixture(scope="module")
def bench(study):
    return Bench(study.params, "class")


@pytest.fixture
def drawn(monkeypatch):
    """Draw nothing, and return the titles of what would have been drawn."""
    titles, one = [], {"error": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 4, "seeds": [1]}}

    def measure_trained(bench, model, title):
        titles.append(title)
        return evaluation.Trained(one, [], torch.empty(0), torch.empty(0), 0.0, {}, {})

    monkeypatch.setattr(evaluation, "measure_trained", measure_trained)
    return titles


def test_a_student_that_adds_nothing_is_drawn_before_training_too(bench, drawn):
    measures = student.untrained(bench, "pisa")
    assert measures["untrained"] == {"error": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 4}}
    assert student.untrained(bench, "lolcats") == {}  # it adds a feature map
    assert drawn == ["pisa, untrained"]


def test_a_start_from_data_has_no_model_before_training(study, drawn):
    entry = dataclasses.replace(study.params.student("pisa"), initialise="least_squares")
    students = {**study.params.students, "pisa": entry}
    bench = Bench(dataclasses.replace(study.params, students=students), "class")
    assert student.before(bench, "pisa") is None
    assert student.untrained(bench, "pisa") == {}


ERRORS = [NotFinite(DIVERGED), torch.linalg.LinAlgError("the matrix is singular")]


@pytest.mark.parametrize("error", ERRORS, ids=["loss", "matrix"])
def test_a_student_that_diverges_is_a_row_with_its_reason(study, error, tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise error

    monkeypatch.setattr(drafts, "make", diverge)
    monkeypatch.setattr(student.rows, "errors", diverge)
    row = student.measured(study.params, "pisa", tmp_path)
    assert row["failure"] == str(error)
    assert (row["operator"], row["teacher"], row["control"]) == ("pisa", "class", False)
    assert row["cost"]["core_macs"] > 0
    assert not {"quality", "undistilled", "training"} & set(row)


def test_a_mistake_of_the_code_is_no_result(study, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("weights")

    monkeypatch.setattr(drafts, "make", broken)
    with pytest.raises(KeyError, match="weights"):
        student.measured(study.params, "pisa", tmp_path)


def made(draft, name):
    """Write into a draft what distillation and evaluation leave there."""
    with project.writing_to(draft):
        project.write_json(project.run_result(name, write=True), {"seconds": {"distill": 3.0}})
        weights = project.student(name, write=True)
        weights.mkdir()
        (weights / "linattn.safetensors").write_bytes(b"w")
        project.pictures(name, write=True).write_bytes(b"p")


def test_a_student_leaves_its_folder_and_no_draft(study, root, monkeypatch):
    def measured(settings, name, draft):
        made(draft, name)
        return {"student": name}

    monkeypatch.setattr(student, "measured", measured)
    assert student.make("pisa", study) == {"student": "pisa"}
    folder = root / "data" / "operators" / "pisa"
    names = {path.name for path in folder.iterdir()}
    assert names == {"row.json", "run.json", "student", "pictures.safetensors"}
    assert not list((root / ".scratch").iterdir())


def test_a_failure_leaves_its_row_and_the_machine_alone(study, root, monkeypatch):
    row = {"student": "pisa", "failure": DIVERGED}
    monkeypatch.setattr(student, "measured", lambda *_: row)
    student.make("pisa", study)
    folder = root / "data" / "operators" / "pisa"
    assert {path.name for path in folder.iterdir()} == {"row.json", "run.json"}
    run = project.read_json(folder / "run.json")
    assert run["error"] == DIVERGED
    assert run["facts"]["versions"]["torch"]


def test_a_draft_that_is_distilled_is_evaluated_alone(study, tmp_path, monkeypatch):
    distilled = []
    monkeypatch.setattr(drafts.students, "make_of", lambda _, name: distilled.append(name))
    monkeypatch.setattr(drafts.evaluation, "evaluate_student", lambda bench, name: bench.role)
    assert drafts.make(study.params, "sd-pisa", tmp_path) == "text"
    made(tmp_path, "sd-pisa.distill")
    assert drafts.make(study.params, "sd-pisa", tmp_path) == "text"
    assert distilled == ["sd-pisa"]


@pytest.mark.parametrize("section", ["sample", "distill", "evaluate"])
def test_a_draft_belongs_to_its_settings(study, section):
    before = drafts.identity(study.params, "pisa")
    batch = dataclasses.replace(getattr(study.params, section), batch=3)
    other = dataclasses.replace(study.params, **{section: batch})
    assert len({before, drafts.identity(other, "pisa"), drafts.identity(other, "pyramid")}) == 3
    assert before == drafts.identity(study.params, "pisa")


# All rows


def row(name, like, **changes):
    """Return a result of the synthetic ones under another name, of the study's protocol."""
    invented = synthetic_results.result(like, synthetic_results.ALL[like])
    return invented | {"student": name, "training": TRAINING, "pictures": SIZES} | changes


FAILED = {
    "student": "ridge",
    "operator": "ridge",
    "options": {},
    "control": False,
    "failure": DIVERGED,
    "undistilled": {"error": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 64}},
    "cost": {"core_macs": 9e6, "added": 24},
}
OWN = {
    "pisa": row("pisa", "clear-pool", operator="pisa", untrained=row("", "clear")["quality"]),
    "lolcats": row("lolcats", "lit", operator="lolcats"),
    "ridge": FAILED,
}
PUBLISHED = {
    "softmax": row("softmax", "softmax"),
    "lit": row("lit", "lit"),
    "clear": row("clear", "clear", pictures={**SIZES, "steps": 8}),
    "linfusion": row("linfusion", "linfusion", training={**TRAINING, "steps": 90}),
}


@pytest.fixture
def written(root, study):
    """Write the rows of three own students and of four published ones, and collect them."""
    for name, own in OWN.items():
        project.write_json(settings.folder(name, write=True) / "row.json", own)
        seconds = {} if "failure" in own else {"seconds": {"distill": 41.4}}
        run = {"facts": synthetic_results.FACTS, "backend": {}, **seconds}
        project.write_json(settings.folder(name) / "run.json", run)
    for name, published in PUBLISHED.items():
        project.write_json(project.published(f"results/{name}.json"), published)
        run = {"facts": synthetic_results.FACTS, "seconds": {"distill": 44.0}}
        project.write_json(project.published(f"runs/{name}.run.json"), run)
    teacher = {"folder": "dit-nano", "cost": {"core_macs": 100.7e6}}
    project.write_json(project.published("results/teacher-class.json"), teacher)
    of_class = {name: study.params.students[name] for name in (*OWN, *PUBLISHED)}
    numbers = dataclasses.replace(study.params, students=of_class)
    return rows.collect(settings.Settings(numbers, tuple(OWN)))


def test_rows_of_the_same_protocol_stand_beside_one_another(written):
    (role,) = written["teachers"]
    teacher = written["teachers"][role]
    assert role == "class"
    assert {row["student"] for row in teacher["rows"]} == {*OWN, "softmax", "lit"}
    assert teacher["left_out"] == ["clear", "linfusion"]
    assert teacher["softmax_macs"] == 100.7e6
    assert "confusion" not in teacher["rows"][0]


def test_the_result_names_no_machine_and_the_run_file_one_for_each_row(written):
    text = (project.study("operators.json")).read_text()
    assert synthetic_results.FACTS["commit"] not in text
    run = project.read_json(project.study("operators.run.json"))
    assert set(run["rows"]) == {*OWN, "softmax", "lit"}
    assert run["rows"]["lit"] == {
        "facts": synthetic_results.FACTS,
        "seconds": {"distill": 44.0},
    }


def test_a_study_in_which_everything_failed_has_rows_and_no_protocol(root):
    teacher = {"folder": "dit-nano", "cost": {"core_macs": 100.7e6}}
    project.write_json(project.published("results/teacher-class.json"), teacher)
    failed = rows.compared("class", {"ridge": FAILED}, {"lit": PUBLISHED["lit"]})
    assert failed["left_out"] == ["lit"]  # nothing says that it was trained alike
    body = report.of_teacher(failed, {})
    assert "No student came to its end." in body
    assert "<figure>" not in body
    assert f"ridge failed: {DIVERGED}." in body


# The report


def lines_of(body):
    """Return the cells of each line of the table, by the name in its head."""
    found = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', body)
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", cells) for name, cells in found}


def test_the_report_shows_nothing_of_a_study_that_was_not_run(root):
    assert report.sections() == []


def test_the_report_says_what_was_measured_on_which_machine(written):
    (title, intro), (of_class, body) = report.sections()
    assert (title, of_class) == ("Every operator at one budget", "Every operator on dit-nano")
    assert "A processor of 2020, 2 threads, torch 2.13.0, commit 0123456789ab" in intro
    assert "N is 64 latents" in body
    assert "128 pictures of 20 steps for the marks (seed 1000)" in body
    assert "50 steps layer by layer and 100 of the whole model, of 16 of 512" in body
    assert "not shown: clear and linfusion" in body


def test_a_line_is_a_student_by_its_error_untrained_below_it_and_failures_last(written):
    lines = lines_of(report.sections()[1][1])
    assert list(lines) == ["softmax", "pisa", "pisa, untrained", "lit", "lolcats", "ridge"]
    operator, undistilled, error, shape, _, share, _, seconds = lines["lit"]
    assert operator == "lit kernel=5"
    assert undistilled.startswith("73.0 <span")
    assert error.startswith("6.5 <span")
    assert 0 < float(shape.split()[0]) < 100
    assert (share, seconds) == ("20.8", "44")
    assert lines["pisa, untrained"][2].startswith("9.0 <span")
    assert lines["pisa, untrained"][-1] == "0"
    assert lines["ridge"][2:5] == ["–"] * 3
    assert lines["ridge"][-1] == "–"


def test_the_nearest_at_each_noise_is_named_with_those_that_may_be_it(written):
    _, (_, body) = report.sections()
    # Errors .06 and .065 times (.4 + noise), give or take a twentieth of .06 and of .065.
    nearest = (
        "Noise 0.1: pisa is nearest, 3.0\u00a0% (2.7 to 3.3); the intervals of lit and lolcats"
    )
    assert f"{nearest} reach it." in body
    assert "softmax is nearest" not in body  # a control keeps what the others replace


def test_figures_show_every_row_and_how_many_times_the_least_error(written):
    teacher = written["teachers"]["class"]
    alt = report.cost_figure(teacher).alt
    for name in ("softmax", "pisa 6", "pisa, untrained 9", "lolcats", "lit"):
        assert name in alt
    assert "ridge" not in alt
    assert "lowest 1 at student pisa" in report.noise_figure(teacher).alt


def test_a_student_that_is_near_at_no_noise_is_left_out_of_the_last_figure(written):
    teacher = copy.deepcopy(written["teachers"]["class"])
    far = [row(f"far-{index}", "linfusion") for index in range(3)]
    teacher["rows"] += map(rows.kept, far)
    assert len(report.by_level(teacher)[0.5]) == 6
    assert "far" not in report.noise_figure(teacher).alt


def test_the_entries_are_those_of_the_file():
    content = reader.read_yaml(project.ROOT / settings.PARAMS)
    assert list(settings.listed()) == list(content["students"])
