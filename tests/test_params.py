"""params.yaml is read strictly: an error names the path of a mistake and what is allowed there."""

import copy
import dataclasses
import re

import pytest

from linattn import attention, params, project, reader, sealed
from linattn.distillation.config import DistillConfig
from linattn.distillation.objectives import PRESETS
from linattn.distillation.optimizers import OPTIMIZERS
from linattn.distillation.schedules import SCHEDULES
from linattn.distillation.settings import DTYPES, Settings
from linattn.studies.operators.settings import load as load_study


@pytest.fixture(scope="module")
def content():
    return reader.read_yaml(project.ROOT / "params.yaml")


def changed(content, path, value):
    """Return a copy with the value at a dotted path replaced; `DELETE` removes the key."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    node = content
    for name in parents:
        node = node[name]
    if value is DELETE:
        del node[last]
    else:
        node[last] = value
    return content


DELETE = object()


@pytest.mark.parametrize("profile", ["tiny", "nano", "full", "paper"])
def test_every_profile_of_the_repository_is_valid(profile):
    settings = params.load(profile)
    assert settings.profile == profile
    assert set(settings.operators) == {"anatomy", "benchmark"}
    assert all(student.operator in attention.OPERATORS for student in settings.students.values())


def test_the_protocol_has_both_controls_and_the_four_methods():
    students = params.load().students
    methods = {"softmax", "clear", "linfusion", "mediator", "lit"}
    assert {student.operator for student in students.values()} == methods
    assert students["softmax"].options == {}
    assert students["softmax-conv"].options["conv"] == students["mediator"].options["conv"]


def test_every_operator_is_a_student_of_the_protocol_or_of_the_study_of_operators():
    students = load_study().params.students
    assert {student.operator for student in students.values()} == set(attention.OPERATORS)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_floats_are_those_of_yaml_1_2(tmp_path, text):
    source = (project.ROOT / "params.yaml").read_text()
    edited, count = re.subn(r"(?m)^(      learning_rate: ).*$", rf"\g<1>{text}", source)
    assert count
    (tmp_path / "params.yaml").write_text(edited)
    settings = params.load(profile="nano", path=tmp_path / "params.yaml")
    assert settings.distill.learning_rate == 1e-4


WRONG = {
    "misspelt profile": ("profile", "nanno", r"profile 'nanno'.*did you mean 'nano'"),
    "misspelt section": ("profiles.nano.destill", {}, r"profiles.nano: 'destill'.*'distill'"),
    "missing section": ("profiles.tiny.sample", DELETE, r"profiles.tiny lacks sample"),
    "misspelt key": (
        "profiles.nano.distill.learning_rat",
        1.0,
        r"profiles.nano.distill: 'learning_rat'.*_rate'",
    ),
    "missing key": ("profiles.full.evaluate.cross", DELETE, r"profiles.full.evaluate lacks cross"),
    "text for a number": (
        "profiles.nano.sample.pictures",
        "many",
        r"sample.pictures is 'many' \(str\).*whole number",
    ),
    "float for a count": (
        "profiles.nano.sample.pictures",
        1.5,
        r"sample.pictures is 1.5 .*whole number",
    ),
    "true for a count": (
        "profiles.nano.sample.pictures",
        True,
        r"sample.pictures is True .*whole number",
    ),
    "out of range": (
        "profiles.nano.sample.pictures",
        0,
        r"sample.pictures is 0; it must be at least 1",
    ),
    "out of range above": (
        "profiles.nano.sample.steps",
        1001,
        r"sample.steps is 1001.*at most 1000",
    ),
    "not finite": ("profiles.nano.distill.learning_rate", float("nan"), r"learning_rate is nan"),
    "noise outside": ("profiles.nano.evaluate.noise", [0.5, 1.5], r"evaluate.noise\[1\] is 1.5"),
    "empty list": ("profiles.nano.evaluate.noise", [], r"evaluate.noise is \[\].*one or more"),
    "seeds twice": ("profiles.nano.distill.seeds", [1, 1], r"seeds is \[1, 1\].*different"),
    "unknown choice": (
        "profiles.nano.distill.objective",
        "protocoll",
        r"objective is 'protocoll'.*'protocol'",
    ),
    "layers of a candidate": (
        "profiles.nano.plan.candidates.disc.layers",
        [0],
        r"plan.candidates.disc has layers \[0\]; leave it out",
    ),
    "no candidates": ("profiles.tiny.plan.candidates", DELETE, r"tiny.plan lacks candidates"),
    "budgets twice": ("profiles.nano.plan.budgets", [0.5, 0.5], r"budgets is .*different"),
    "plan of nobody": ("teachers_of.plan", ["clas"], r"teacher in teachers_of.plan: 'clas'"),
    "student called as a plan": (
        "students",
        {"plan-class": {"operator": "softmax", "teacher": "class"}},
        r"students.plan-class: 'plan-class' is the name of another row",
    ),
    "no teacher": (
        "students.clear.teacher",
        DELETE,
        r"students.clear lacks teacher.*teacher: class",
    ),
    "misspelt teacher's key": ("teachers.class.sorce", "x", r"teachers.class: 'sorce'.*'source'"),
    "no mapping": ("students", ["clear"], r"students is \['clear'\].*mapping"),
    "misspelt operator": (
        "students.clear.operator",
        "claer",
        r"students.clear.operator 'claer'.*'clear'",
    ),
    "missing operator": ("students.clear.operator", DELETE, r"students.clear lacks operator"),
    "misspelt option": ("students.clear.radios", 3, r"students.clear.radios is 3: .*'radius'"),
    "option out of range": ("students.clear.radius", -3, r"students.clear.radius is -3: .*-3"),
    "option of another type": (
        "students.mediator.count",
        "many",
        r"students.mediator.count is 'many'",
    ),
    "schedule out of order": (
        "students.mediator-schedule.schedule",
        [{"until": 0.0, "count": 4}, {"until": 0.5, "count": 9}],
        r"students.mediator-schedule.*until",
    ),
    "misspelt key of a student": (
        "students.clear.initialize",
        "all",
        r"students.clear.initialize.*'initialise'",
    ),
    "unknown teacher": (
        "students.clear.teacher",
        "clas",
        r"students.clear.teacher 'clas'.*'class'",
    ),
    "recipe without one": (
        "students.clear.recipe",
        "published",
        r"students.clear.recipe\).*'clear'",
    ),
    "a name that is no folder": (
        "students.a/b",
        {"operator": "clear", "teacher": "class"},
        r"students.a/b",
    ),
    "a name of another row": (
        "students.teacher-x",
        {"operator": "clear", "teacher": "class"},
        r"x.*another row",
    ),
    "benchmark operator": (
        "operators.benchmark.lit.kernal",
        3,
        r"operators.benchmark.lit.kernal.*'kernel'",
    ),
    "published recipe": (
        "profiles.paper.published.lit.stepz",
        3,
        r"published.lit: 'stepz'.*'steps'",
    ),
    "published operator": (
        "profiles.paper.published.litt",
        {"teacher": "class"},
        r"operator in profiles.paper.published: 'litt': did you mean 'lit'",
    ),
    "published without a teacher": (
        "profiles.paper.published.lit",
        {"steps": 3},
        r"profiles.paper.published.lit lacks teacher",
    ),
    "published teacher": (
        "profiles.paper.published.lit.teacher",
        "txt",
        r"published.lit.teacher 'txt'.*'text'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_names_the_path_and_the_nearest_name(content, name):
    path, value, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        params.parse(changed(content, path, value))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("operator", "cleer", "operator 'cleer'.*'clear'"), ("raduis", 3, "raduis is 3: .*'radius'")],
)
def test_a_candidate_is_built_for_every_teacher_that_is_planned(content, key, value, says):
    wrong = changed(content, f"profiles.nano.plan.candidates.disc.{key}", value)
    wrong["teachers_of"]["plan"], wrong["profile"] = ["class"], "nano"
    with pytest.raises(ValueError, match=rf"profiles.nano.plan.candidates.disc.{says}"):
        params.parse(wrong)


def test_a_mistake_in_another_profile_is_found_too(content):
    assert content["profile"] != "paper"
    with pytest.raises(ValueError, match="profiles.paper.sample.steps"):
        params.parse(changed(content, "profiles.paper.sample.steps", 0))


def test_a_profile_takes_what_it_does_not_state_from_the_one_it_starts_from(content):
    tiny, nano = content["profiles"]["tiny"], content["profiles"]["nano"]
    assert tiny["distill"]["steps"] != nano["distill"]["steps"]
    assert tiny["distill"]["optimizer"] == nano["distill"]["optimizer"]
    assert params.load("full").distill.clip == params.load("nano").distill.clip


def test_a_new_training_option_is_one_field_of_the_settings(content):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(params.Distill):
        momentum: float = reader.between(0, 1, default=0.95)

    entry = content["profiles"]["nano"]["distill"]
    assert reader.read(More, entry, "distill").momentum == 0.95
    assert reader.read(More, {**entry, "momentum": 0.5}, "distill").momentum == 0.5
    with pytest.raises(ValueError, match=r"distill.momentum is 2; .*at most 1"):
        reader.read(More, {**entry, "momentum": 2}, "distill")
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        reader.read(More, {**entry, "momentun": 0.5}, "distill")


@pytest.mark.parametrize(
    ("settings", "name", "registry"),
    [
        (Settings, "optimizer", OPTIMIZERS),
        (Settings, "schedule", SCHEDULES),
        (Settings, "dtype", DTYPES),
        (DistillConfig, "operator", attention.OPERATORS),
        (DistillConfig, "initialise", attention.POLICIES),
        (params.Student, "initialise", attention.POLICIES),
        (params.Published, "initialise", attention.POLICIES),
    ],
)
def test_choices_are_those_of_the_registry(settings, name, registry):
    (rules,) = (f.metadata for f in dataclasses.fields(settings) if f.name == name)
    assert rules["choices"] is registry


def test_a_policy_that_is_registered_later_may_stand_in_params_yaml(content, monkeypatch):
    content = changed(content, "students.clear.initialise", "fresh")
    with pytest.raises(ValueError, match="students.clear.initialise is 'fresh'; it is one of"):
        params.parse(content)
    monkeypatch.setitem(attention.POLICIES, "fresh", attention.Policy(()))
    assert params.parse(content).student("clear").initialise == "fresh"


@pytest.mark.parametrize("objective", [*PRESETS, {"preset": "lit", "task": 0.0}], ids=str)
def test_every_objective_may_stand_in_a_profile(content, objective):
    entry = {**content["profiles"]["nano"]["distill"], "objective": objective}
    assert reader.read(params.Distill, entry, "distill").objective == objective


def test_a_published_recipe_brings_its_paper_settings_teacher_and_start(content):
    content = changed(content, "students.lit.recipe", "published")
    settings = params.parse(content, "paper")
    recipe = settings.recipe("lit")
    assert (recipe.objective, recipe.batch) == ("lit", 256)
    assert (recipe.layerwise_steps, recipe.trains) == (0, "all")
    assert settings.student("lit").initialise == "mlp_only"
    assert settings.recipe("clear") == settings.distill


def test_a_students_settings_leave_out_the_defaults(content):
    assert all(student.settings == {} for student in params.parse(content).students.values())
    for key, value in (("layers", ["first:2", 5]), ("initialise", "v"), ("recipe", "protocol")):
        content = changed(content, f"students.clear.{key}", value)
    assert params.parse(content).student("clear").settings == {
        "layers": ("first:2", 5),
        "initialise": "v",
    }
    content = changed(content, "students.lit.recipe", "published")
    assert params.parse(content, "paper").student("lit").settings == {
        "initialise": "mlp_only",
        "recipe": "published",
    }


def test_an_unknown_name_is_refused_with_the_nearest(content):
    settings = params.parse(content)
    with pytest.raises(ValueError, match="did you mean 'mediator'"):
        settings.student("mediater")
    with pytest.raises(ValueError, match="valid are"):
        settings.teacher("nobody")


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "{", "- 1\nb: 2"])
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="params.yaml is not valid YAML") as caught:
        params.load(path=path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no params.yaml in"):
        params.load(path=tmp_path / "params.yaml")


@pytest.mark.parametrize("role", ["class", "text", "text-large", "text-joint"])
def test_real_teachers_have_layers_that_every_operator_fits(role):
    """Check the profile `paper` as far as a CPU can: its layers build on the meta device."""
    settings = params.load("paper")
    shape = params.shape_of(settings.teacher(role))
    for student in settings.students.values():
        params.check_operator(student, *shape, path=f"students.{student.name}")


def test_a_teacher_of_the_hub_has_a_revision_and_one_in_a_folder_has_none():
    hub, folder = params.load("paper").teacher("class"), params.load("nano").teacher("class")
    assert (hub.folder, hub.name_or_path, hub.loading) == (
        None,
        "facebook/DiT-XL-2-256",
        {"revision": hub.revision, "card": {"side": 256, "guidance": 4.0}},
    )
    assert folder.name_or_path == str(project.ROOT / "data/teachers/dit-nano")
    assert folder.loading == {}


@pytest.mark.parametrize("profile", ["full", "real", "paper"])
def test_a_profiles_teacher_of_the_hub_is_one_commit(profile):
    for role, teacher in params.load(profile).teachers.items():
        if not teacher.folder:
            assert re.fullmatch("[0-9a-f]{40}", teacher.revision), (profile, role)


def test_an_operators_broken_file_leaves_the_other_students(monkeypatch):
    says = "the operator 'lit' cannot be imported (lit.py, line 3: SyntaxError)"
    monkeypatch.setitem(attention.OPERATORS.broken, "lit", says)
    with pytest.warns(UserWarning, match=r"operators\.anatomy leaves out lit: .*line 3"):
        settings = params.load()
    assert "lit" in settings.students
    assert "lit" not in settings.operators["anatomy"]
    assert "clear" in settings.operators["anatomy"]
    shape = attention.LayerShape(128, 4, 32)
    with pytest.raises(ValueError, match="line 3"):
        attention.create("lit", shape)


def test_a_teachers_broken_config_leaves_the_other_students(monkeypatch):
    whole = params.operators.described

    def described(path):
        if "dit-nano" in str(path):
            raise sealed.Damaged(f"{path} is damaged")
        return whole(path)

    monkeypatch.setattr(params.operators, "described", described)
    settings = params.load()
    with pytest.raises(ValueError, match="is damaged"):
        params.shape_of(settings.teachers["class"])
    params.shape_of(settings.teachers["text"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("profile: nano\n".encode("utf-16"), "is not UTF-8"),
        (b"profile: nano # \xff\n", "is not UTF-8"),
        (b"a: " + b"[" * 2000 + b"]" * 2000, "too deeply"),
        (None, "is a folder"),
    ],
)
def test_a_file_that_dvc_could_not_read_is_named(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"params.yaml .*{message}"):
        params.load(path=path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("source", value) for value in ("", "x" * 300, "<script>", "a/b/c", "data/" + "x" * 300)),
        *(("revision", value) for value in ("", "../x", "a b", "/main")),
    ],
)
def test_a_teacher_that_cannot_be_found_anywhere_is_refused_at_once(content, key, value):
    path = f"profiles.paper.teachers.class.{key}"
    with pytest.raises(ValueError, match=rf"{path} is '.*it must be a") as error:
        params.parse(changed(content, path, value), "paper")
    assert len(str(error.value)) < 300


def test_a_student_of_its_papers_recipe_names_a_teacher_that_is_there(content):
    path = "profiles.real.students.flux-clear.teacher"
    assert params.parse(content, "real").students["flux-clear"].recipe == "published"
    with pytest.raises(ValueError, match="flux-clear.teacher 'fluxx': did you mean 'flux'"):
        params.parse(changed(content, path, "fluxx"), "real")


def test_a_home_of_nobody_is_a_folder_that_is_not_there():
    assert params.Teacher(source="~no-such-user/model").folder is not None
