"""The whole pipeline at `profile: tiny`, through DVC itself, in a copy of the repository with four
students of two teachers; `.ci/run` runs the third teacher's.

The tests of this file are one story and run in its order: first run, nothing on the second, a
forced stage, then students added, edited, removed and failing.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from linattn import params, pipeline, project, sealed

STUDENTS = """students:
  softmax: {operator: softmax, teacher: class}
  clear: {operator: clear, teacher: class, radius: 4}
  flux-clear: {operator: clear, teacher: text-joint, radius: 4}
  mediator-schedule:
    operator: mediator
    teacher: class
    conv: 3
    schedule: [{until: 0.5, count: 4}, {until: 0.0, count: 16}]
"""
NAMES = ("softmax", "clear", "flux-clear", "mediator-schedule")
READING = ("flux-clear",)  # students of teachers that read captions
ROLES = ("class", "text-joint")
EACH = ("distill", "evaluate")


@pytest.fixture
def far(monkeypatch):
    """params.yaml with a role more, whose teacher is on the hub, and a student of it."""
    usual = params.load("nano")
    role = params.Teacher(source="facebook/DiT-XL-2-256")
    student = params.Student(operator="softmax", teacher="far", name="far-softmax")
    settings = dataclasses.replace(
        usual,
        teachers={**usual.teachers, "far": role},
        students={**usual.students, student.name: student},
    )
    monkeypatch.setattr(params, "load", lambda profile=None: settings)
    monkeypatch.setattr(pipeline, "_check_listed", lambda settings: None)
    return settings


def test_a_hub_teacher_without_a_revision_is_refused_before_anything_runs(far, monkeypatch):
    monkeypatch.setattr(pipeline, "dvc", lambda *words, **options: pytest.fail("dvc was run"))
    for only in (None, "far"):
        with pytest.raises(ValueError, match="facebook/DiT-XL-2-256, has no revision"):
            pipeline.repro(only)


def test_a_teacher_alone_runs_its_own_stages_and_its_notes_first(monkeypatch):
    ran = []
    monkeypatch.setattr(
        pipeline,
        "dvc",
        lambda *words, **_: ran.append(words) or 0,
    )
    monkeypatch.setattr(pipeline, "make_folders", lambda: None)
    assert pipeline.repro("text") == 0
    (first, going, *targets), report = ran
    assert (first, going, report) == ("repro", "--keep-going", ("repro", "--single-item", "report"))
    names = params.load().of_teacher("text")
    assert targets == [
        "source@text",
        "sample@text",
        "reference@text",
        "anatomy@text",
        *(f"{stage}@{name}" for stage in EACH for name in names),
    ]


def test_a_damaged_teacher_of_several_leaves_out_its_own_stages(monkeypatch, capsys):
    def check(role, teacher):
        if role == "text":
            raise sealed.Damaged("config.json is damaged; take it from Git again")

    monkeypatch.setattr(pipeline.source, "check", check)
    monkeypatch.setattr(pipeline.source, "check_steps", lambda *arguments: None)
    pipeline._check_sources(params.load(), ["class", "text"])
    assert "The text teacher is left out: config.json is damaged" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        pipeline._check_sources(params.load(), ["text"])


def failing(monkeypatch, behind, errors=()):
    """Stand in for a run that left these stages behind dvc.lock, and these rows with an error."""
    monkeypatch.setattr(pipeline, "stale", lambda: list(behind))
    monkeypatch.setattr(pipeline, "_sources_missing", list)
    monkeypatch.setattr(pipeline, "_error", lambda name: "no room" if name in errors else "")


@pytest.mark.parametrize(
    ("behind", "errors", "failed", "waiting"),
    [
        (["benchmark@class"], [], "benchmark@class", ""),
        (["anatomy@text", "report"], [], "anatomy@text", ""),
        (["distill@lit", "evaluate@lit"], ["lit"], "lit", "evaluate@lit"),
        (["sample@class", "distill@lit"], [], "sample@class", "distill@lit"),
        (["reference@class"], ["teacher-class"], "teacher-class", ""),
        ([], [], "see the messages above", ""),
    ],
    ids=str,
)
def test_a_failed_stage_is_named_and_so_is_what_waits_for_it(
    monkeypatch, capsys, behind, errors, failed, waiting
):
    failing(monkeypatch, behind, errors)
    settings = params.load()
    pipeline._name_failures(settings, list(settings.teachers), [], rendered=True)
    printed = capsys.readouterr().err
    assert f"Failed: {failed}.\n" in printed
    assert ("Not run" in printed) is bool(waiting)
    if waiting:
        assert f"Not run, since they need what failed: {waiting}.\n" in printed


def test_only_stages_that_were_run_are_named(monkeypatch):
    failing(monkeypatch, ["benchmark@class", "distill@lit"])
    assert pipeline.unfinished(["distill@lit"]) == (["distill@lit"], [])


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_broken_run_file_is_an_error_of_its_row(tmp_path, monkeypatch, text):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    path = project.run_result("clear", write=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert "clear.run.json is damaged" in pipeline._error("clear")


def test_a_profile_with_its_own_teachers_is_refused_where_dvc_has_no_stages_of_them(monkeypatch):
    real = params.load("real")
    monkeypatch.setattr(params, "load", lambda profile=None: real)
    monkeypatch.setattr(pipeline, "dvc", lambda *words, **options: pytest.fail("dvc was run"))
    with pytest.raises(ValueError, match="students of its own .*make repro PROFILE=real"):
        pipeline.repro()


def test_a_copy_lists_a_profiles_own_teachers_and_students(tmp_path):
    """DVC makes stages of the lists at the top, so those of the profile must stand there."""
    pipeline._choose(tmp_path, "tiny")
    assert "profile: tiny\n" in (tmp_path / "params.yaml").read_text()
    pipeline._choose(tmp_path, "rehearse")
    settings = params.load(path=tmp_path / "params.yaml")
    content = YAML(typ="safe").load(tmp_path / "params.yaml")
    assert settings.profile == "rehearse"
    assert list(content["teachers"]) == list(settings.teachers)
    assert list(content["students"]) == list(settings.students)
    assert content["pretrained"] == {}
    assert content["teachers_of"] == {"anatomy": [], "benchmark": [], "plan": []}


def test_a_copy_finds_what_lies_outside_of_git_where_it_lay(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "my.txt").write_text("a prompt")
    entry = {"source": "models/mine", "prompts": "my.txt", "side": 64}
    assert pipeline._absolute(entry) == {
        "source": str(tmp_path / "models" / "mine"),
        "prompts": str(tmp_path / "my.txt"),
        "side": 64,
    }
    elsewhere = {"source": "nobody/knows", "prompts": "data/prompts/prompts.txt"}
    assert pipeline._absolute(elsewhere) == elsewhere


def test_a_teachers_files_in_this_repository_are_not_copied(tmp_path, monkeypatch):
    root, folder = tmp_path / "root", tmp_path / "copy"
    for path in (".dvc/config", "models/mine/model_index.json", "data/teachers/own/card.json"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("{}")
    (folder / ".dvc").mkdir(parents=True)
    entries = {"mine": {"source": "models/mine"}, "own": {"source": "data/teachers/own"}}
    content = {"profile": "nano", "profiles": {"real": {"teachers": entries, "students": {}}}}
    lists = {"teachers_of": {}, "students": {}}
    with (root / "params.yaml").open("w") as file:
        YAML().dump(content | lists, file)
    monkeypatch.setattr(project, "ROOT", root)
    pipeline.copy(folder, "real")
    assert not (folder / "models").exists()
    assert (folder / "data" / "teachers" / "own" / "card.json").is_file()


def test_an_unknown_teacher_of_another_profile_is_refused_before_the_copy(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "copy", lambda *arguments: pytest.fail("copied"))
    assert pipeline.main(["--profile", "real", "--teacher", "SD15"]) == 1
    assert "unknown teacher 'SD15': did you mean 'sd15'?" in capsys.readouterr().err


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A Git repository with the lock of a pipeline and of a study."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    for lock in ("dvc.lock", "studies/plugins/dvc.lock"):
        (tmp_path / lock).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / lock).write_text("committed\n")
    (tmp_path / "studies" / "plugins" / "dvc.yaml").write_text("stages: {}\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "one")):
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    return tmp_path


def test_the_one_file_that_a_run_changes_is_named_with_the_command_that_takes_it_back(
    repository, capsys
):
    with pipeline.naming_what_changed("dvc.lock"):
        pass
    assert not capsys.readouterr().out

    def interrupted():
        with pipeline.naming_what_changed("dvc.lock"):
            (repository / "dvc.lock").write_text("of this machine\n")
            subprocess.run(["git", "add", "dvc.lock"], cwd=repository, check=True)  # as DVC advises
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (command,) = re.findall(r"git checkout HEAD -- \S+", capsys.readouterr().out)
    subprocess.run(command.split(), cwd=repository, check=True, capture_output=True)
    assert (repository / "dvc.lock").read_text() == "committed\n"


def test_a_study_is_run_by_its_name_and_names_its_own_lock(repository, monkeypatch, capsys):
    def dvc(*words, **_):
        (repository / "studies/plugins/dvc.lock").write_text("of this machine\n")
        return 0 if words == ("repro", "studies/plugins/dvc.yaml") else 1

    monkeypatch.setattr(pipeline, "dvc", dvc)
    assert pipeline.main(["--study", "plugins"]) == 0
    assert "git checkout HEAD -- studies/plugins/dvc.lock" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "plugin", "../plugins"])
def test_an_unknown_study_is_refused_with_those_there_are(repository, name, capsys):
    assert pipeline.main(["--study", name]) == 1
    assert "valid are plugins" in capsys.readouterr().err


def ran_in(done):
    """Name the stages that a command ran, but for those that note what a teacher is every time."""
    names = set(re.findall(r"Running stage '([^']+)'", done.stdout))
    return {name for name in names if not name.startswith("source@")}


class Clone:
    def __init__(self, folder: Path):
        self.folder = folder

    def python(self, *words, check=True):
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = project.python_path(self.folder)
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), environment["PATH"]]
        )
        environment.pop(project.PIPELINE, None)
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    def would_run(self):
        """What a dry run names: stages that differ by themselves, not those that a changed out
        would reach.
        """
        printed = self.python("dvc", "repro", "--dry", "--keep-going", check=False)
        return set(pipeline.would_run(printed.stdout + printed.stderr))

    def edit(self, before, after):
        path = self.folder / "params.yaml"
        assert path.read_text().count(before) == 1
        path.write_text(path.read_text().replace(before, after))

    def lock(self):
        """stage -> {out: hash}"""
        from ruamel.yaml import YAML

        stages = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        return {
            name: {out["path"]: out["md5"] for out in stage.get("outs", [])}
            for name, stage in stages.items()
        }

    def read(self, path):
        return json.loads((self.folder / path).read_text())


def shortened(text):
    """Leave two teachers of params.yaml and the profiles that train them: DVC reads the file some
    twenty times a run.
    """
    for pattern, kept in (
        (r"(?ms)^students:\n.*?\n(?=\nprofiles:)", STUDENTS),
        (r"(?m)^(pretrained: {.*) text: &sd \S+,", r"\1"),
        (r"(?m)^  text: {source: .*\n", ""),
        (r"(?m)^  anatomy: \[class, text, text-joint\]$", "  anatomy: [class, text-joint]"),
        (r"(?ms)^  # Real checkpoints, .*?\n(?=# Operators that are shown)", ""),
    ):
        text, count = re.subn(pattern, kept, text)
        assert count == 1, pattern
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    folder = pipeline.copy(tmp_path_factory.mktemp("clone"), "tiny")
    # a cache of its own
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    path = folder / "params.yaml"
    path.write_text(shortened(path.read_text()))
    return Clone(folder)


@pytest.fixture(scope="module")
def finished(clone):
    """The copy after its first run; what that run said is kept."""
    clone.first = clone.python("linattn.pipeline")
    return clone


def test_one_command_ends_with_the_path_of_the_report(finished):
    index = finished.folder / "reports" / "index.html"
    assert finished.first.stdout.strip().splitlines()[-1] == f"Done. The report: {index}"
    assert index.stat().st_size > 10_000


def test_every_student_has_quality_with_n_and_intervals(finished):
    for name in NAMES:
        result = finished.read(f"reports/local/results/{name}.json")
        assert result["student"] == name
        assert result["quality"]["shape"]["n"] == (4 if name in READING else 8)
        assert ("relation" in result["quality"]) == (name in READING)
        assert len(result.get("captions", ())) == (8 if name in READING else 0)
        error = result["quality"]["error"]
        assert error["low"] <= error["value"] <= error["high"]
        assert result["undistilled"]["error"]["value"] is not None
        assert (
            len(result["training"]["curve"]["step"]) == len(result["training"]["curve"]["loss"]) > 1
        )
        run = finished.read(f"reports/local/runs/{name}.run.json")
        assert run["facts"]["versions"]["torch"]
        assert {"distill", "evaluate", "draw"} <= set(run["seconds"])
        assert (finished.folder / "reports" / "pages" / f"{name}.html").exists()


def test_every_teacher_has_a_row_and_chance_beside_it(finished):
    for role in ROLES:
        row, chance = (
            finished.read(f"reports/local/results/{name}-{role}.json")
            for name in ("teacher", "chance")
        )
        assert row["teacher"] == chance["teacher"] == role
        # the teacher's own row has no distance to itself
        of_students = {f"cross_{name}" for name in chance["quality"]} | {"eye_distance"}
        assert row["quality"].keys() >= chance["quality"].keys() - of_students
        assert (
            finished.folder / "reports" / "local" / "runs" / f"teacher-{role}.run.json"
        ).exists()


def test_softmax_unchanged_is_the_teacher_before_training(finished):
    """The control's own zero: what all distances are measured from."""
    before = finished.read("reports/local/results/softmax.json")["undistilled"]
    assert before["error"]["value"] < 1e-9
    assert before["mse"]["value"] < 1e-6
    assert finished.read("reports/local/results/clear.json")["undistilled"]["error"]["value"] > 1e-4


def test_a_second_run_runs_nothing_and_takes_seconds(finished):
    before = finished.lock()
    done = finished.python("linattn.pipeline")
    assert not ran_in(done)
    assert finished.lock() == before


def test_a_run_of_one_teacher_finds_all_of_it_done(finished):
    before = finished.lock()
    done = finished.python("linattn.pipeline", "--teacher", "text-joint")
    assert not ran_in(done)
    assert finished.lock() == before
    assert "report:" not in finished.python("dvc", "status", check=False).stdout


def test_the_lock_taken_back_costs_nothing(finished):
    """What `git checkout dvc.lock` does: the next run finds every result in DVC's cache."""
    before = finished.lock()
    (finished.folder / "dvc.lock").unlink()
    done = finished.python("linattn.pipeline")
    assert not ran_in(done)
    assert finished.lock() == before


def test_results_hold_no_time_and_no_machine(finished):
    for path in (finished.folder / "reports" / "local" / "results").glob("*.json"):
        assert "seconds" not in path.read_text()
        assert str(finished.folder) not in path.read_text()
    for path in (finished.folder / "reports" / "notebooks").rglob("*.ipynb"):
        assert str(finished.folder) not in path.read_text()


def test_forced_stages_change_no_hash_but_the_run_files(finished):
    before = finished.lock()
    stages = (*(f"sample@{role}" for role in ROLES), "distill@clear", "evaluate@clear")
    finished.python("dvc", "repro", "--force", "--single-item", *stages)
    after = finished.lock()
    changed = {
        path for name in after for path, md5 in after[name].items() if before[name][path] != md5
    }
    assert changed <= {
        "reports/local/runs/clear.run.json",
        "reports/local/runs/clear.distill.run.json",
    }
    assert changed


def test_html_has_no_outside_address(finished):
    pages = [
        finished.folder / "reports" / "index.html",
        *(finished.folder / "reports" / "pages").glob("*.html"),
    ]
    assert len(pages) > 1 + len(NAMES)
    for page in pages:
        html = page.read_text()
        assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", html), (
            page.name
        )
        assert not re.search(r"""url\(\s*["']?(?:https?:)?//|@import""", html), page.name
        assert "<title>" in html
        assert all("alt=" in image for image in re.findall(r"<img\b[^>]*>", html)), page.name


def test_a_comment_in_params_changes_nothing(finished):
    path = finished.folder / "params.yaml"
    path.write_text(path.read_text() + "# a comment\n")
    # the report alone may lag: the forced stages wrote new run files
    assert finished.would_run() <= {"report"}


def test_editing_one_student_runs_that_one_and_the_report(finished):
    four, three = (
        f"  clear: {{operator: clear, teacher: class, radius: {radius}}}\n" for radius in (4, 3)
    )
    finished.edit(four, three)
    assert finished.would_run() == {"distill@clear", "evaluate@clear", "report"}
    finished.edit(three, four)


EVALUATED = {*(f"reference@{role}" for role in ROLES), *(f"evaluate@{name}" for name in NAMES)}
PARTS = {
    "evaluate": ("*evaluate, pictures: 8,", "*evaluate, pictures: 9,", EVALUATED),
    "benchmark": (
        "benchmark: {tokens: [64, 256],",
        "benchmark: {tokens: [64, 144],",
        {"benchmark@class"},
    ),
    "sample": (
        "*sample, pictures: 16, steps: 4,",
        "*sample, pictures: 16, steps: 5,",
        {f"sample@{r}" for r in ROLES},
    ),
    "another profile": ("{pictures: 128,", "{pictures: 129,", set()),
}


@pytest.mark.parametrize("name", PARTS)
def test_editing_a_part_runs_what_reads_it(finished, name):
    before, after, stages = PARTS[name]
    finished.edit(before, after)
    would = finished.would_run()
    finished.edit(after, before)
    assert would - {"report"} == stages


CLEAR = {
    *(f"anatomy@{role}" for role in ROLES),
    "benchmark@class",
    "report",
    *(f"{stage}@{name}" for stage in EACH for name in ("clear", "flux-clear")),
}


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("linattn/report/figures/curves.py", {"report"}),
        ("linattn/params/schema.py", set()),
        ("linattn/attention/__init__.py", {"report"}),  # it shows what operators say
        ("linattn/attention/clear.py", CLEAR),
        ("notebooks/06_benchmark.ipynb", {"benchmark@class"}),
    ],
)
def test_editing_a_file_runs_what_uses_it(finished, path, stages):
    file = finished.folder / path
    before = file.read_text()
    file.write_text(before + "\n")
    would = finished.would_run()
    file.write_text(before)
    assert would - {"report"} == stages - {"report"}
    assert "report" in would or "report" not in stages


def test_an_edit_that_cannot_alter_results_is_accepted_and_makes_nothing_new(finished):
    file = finished.folder / "linattn" / "attention" / "clear.py"
    before, text = finished.lock(), file.read_text()
    file.write_text(text + "\n")
    assert finished.would_run()
    finished.python("linattn.pipeline", "--accept")
    assert finished.would_run() <= {"report"}
    assert finished.lock() == before
    file.write_text(text)
    printed = finished.python("linattn.pipeline", "--accept").stdout
    assert "distill@clear" in printed
    assert "distill@softmax" not in printed


def test_an_edited_number_is_not_accepted(finished):
    four, three = (
        f"  clear: {{operator: clear, teacher: class, radius: {radius}}}\n" for radius in (4, 3)
    )
    finished.edit(four, three)
    printed = finished.python("linattn.pipeline", "--accept").stdout
    assert "no stage" in printed
    assert re.search(r"Not recorded.*distill@clear", printed)
    assert finished.would_run() >= {"distill@clear", "evaluate@clear"}
    finished.edit(three, four)


def test_an_added_student_runs_alone_and_a_failing_one_is_named(finished):
    """One good student more and one that cannot be made: layer 99 is only missed when it is looked
    for.
    """
    last = "{until: 0.0, count: 16}]\n"
    more = (
        "  softmax-conv: {operator: softmax, teacher: class, conv: 3}\n"
        "  misfit: {operator: softmax, teacher: class, layers: [99]}\n"
    )
    finished.edit(last + "\nprofiles:", last + more + "\nprofiles:")
    # a dry run names none that depend on these: source@class has not yet noted their parts
    new = {f"distill@{name}" for name in ("softmax-conv", "misfit")}
    assert finished.would_run() - {"report"} == new
    done = finished.python("linattn.pipeline", check=False)
    assert done.returncode == 1
    assert "Failed: misfit." in done.stderr
    ran = ran_in(done)
    assert ran == {"distill@misfit", "distill@softmax-conv", "evaluate@softmax-conv", "report"}
    assert (finished.folder / "reports" / "failed" / "04_distill-misfit.ipynb").exists()
    html = (finished.folder / "reports" / "index.html").read_text()
    assert "softmax-conv" in html
    assert re.search(r"misfit.{0,400}99", html, re.S)


def test_a_removed_student_leaves_the_report_and_runs_nothing_else(finished):
    finished.edit("  misfit: {operator: softmax, teacher: class, layers: [99]}\n", "")
    finished.edit("  softmax-conv: {operator: softmax, teacher: class, conv: 3}\n\n", "\n")
    assert finished.would_run() == {"report"}
    done = finished.python("linattn.pipeline")
    assert ran_in(done) == {"report"}
    html = (finished.folder / "reports" / "index.html").read_text()
    assert "softmax-conv" not in html
    assert "misfit" not in html
    unread = finished.folder / project.LOCAL / "results" / "softmax-conv.json"
    assert unread.exists()  # nobody reads it any more


def test_the_working_directory_does_not_matter(finished, tmp_path):
    """The stages' functions from elsewhere, as JupyterLab runs them: results go to scratch, outs
    stay.
    """
    index = finished.folder / "reports" / "index.html"
    before = hashlib.md5(index.read_bytes()).hexdigest()
    code = "from linattn import params, project, report\nprint(project.report(write=True))"
    environment = {key: value for key, value in os.environ.items() if key != project.PIPELINE}
    environment["PYTHONPATH"] = str(finished.folder)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(finished.folder / ".scratch/lab/reports/index.html")
    assert hashlib.md5(index.read_bytes()).hexdigest() == before
