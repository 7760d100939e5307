"""What a teacher is: its notes, its prompts, and the sentences for what cannot be one."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import kinds
import pytest
import tiny

from linattn import configs, digests, params, project, prompts, roles, source, teachers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pipelines that nothing in this repository names: one that reads and one of classes."""
    root = tmp_path_factory.mktemp("models")
    kinds.pipeline("pixart").save_pretrained(root / "reader")
    tiny.pipeline().save_pretrained(root / "classes")
    return root


@pytest.fixture
def reader(folders, tmp_path):
    return shutil.copytree(folders / "reader", tmp_path / "reader")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root to write notes in, with the repository's list of prompts."""
    place = tmp_path / "root"
    (place / "data" / "prompts").mkdir(parents=True)
    shutil.copy(project.ROOT / prompts.DEFAULT, place / prompts.DEFAULT)
    monkeypatch.setattr(project, "ROOT", place)
    return place


def settings_of(teacher):
    usual = params.load("nano")
    return dataclasses.replace(usual, teachers={"mine": teacher})


def notes(root, teacher):
    """Take the notes of a teacher and return them by name."""
    settings = settings_of(teacher)
    with project.pipeline():
        folder = source.note("mine", settings)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in source.NOTES}


@pytest.fixture
def usual(monkeypatch):
    """params.yaml read while the root is the repository's."""
    loaded = params.load("nano")
    monkeypatch.setattr(params, "load", lambda profile=None, path=None: loaded)


def test_notes_change_with_a_file_a_number_or_a_prompt_and_nothing_else(usual, root, reader):
    teacher = params.Teacher(source=str(reader), prompts=str(root / prompts.DEFAULT))
    first = notes(root, teacher)
    assert first == notes(root, teacher)
    assert first["model"]["files"]["transformer/config.json"]
    assert "tokenizer/tokenizer.json" in first["model"]["files"]
    assert str(root) not in json.dumps(first)
    config = reader / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    second = notes(root, teacher)
    assert {name for name in first if first[name] != second[name]} == {"model"}
    evaluated = dataclasses.replace(teacher, evaluate={"pictures": 8})
    third = notes(root, evaluated)
    assert {name for name in second if second[name] != third[name]} == {"evaluate"}
    with (root / prompts.DEFAULT).open("a") as file:
        file.write("one more prompt\n")
    fourth = notes(root, evaluated)
    assert {name for name in third if third[name] != fourth[name]} == {"sample"}


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"side": 64}])
def test_the_note_on_a_model_says_how_it_is_loaded(usual, root, reader, change):
    teacher = params.Teacher(source=str(reader))
    first, second = notes(root, teacher), notes(root, dataclasses.replace(teacher, **change))
    assert {name for name in first if first[name] != second[name]} == {"model"}


def test_the_note_on_a_model_changes_with_its_card(usual, root, reader):
    teacher = params.Teacher(source=str(reader))
    first = notes(root, teacher)
    (reader / "card.json").write_text('{"steps": 7}')
    second = notes(root, teacher)
    assert {name for name in first if first[name] != second[name]} == {"model"}


def test_the_note_on_a_mixed_student_has_the_files_of_its_operators(root):
    for name in ("clear", "lit", "mixed"):
        path = root / "linattn" / "attention" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    parts = [{"operator": "clear", "layers": [1]}, {"operator": "lit"}, {"operator": "clear"}]
    student = params.Student(operator="mixed", options={"parts": parts})
    first = source.files_of_parts(student)
    assert list(first) == ["linattn/attention/clear.py", "linattn/attention/lit.py"]
    (root / "linattn" / "attention" / "lit.py").write_text("edited")
    second = source.files_of_parts(student)
    assert [name for name in first if first[name] != second[name]] == ["linattn/attention/lit.py"]
    assert source.files_of_parts(params.Student(operator="clear")) == {}


def test_every_student_has_a_note_whichever_teacher_its_recipe_moves_it_to(usual, root, folders):
    settings = settings_of(params.Teacher(source=str(folders / "classes")))
    with project.pipeline():
        folder = source.note("mine", settings)
    assert {path.stem for path in (folder / "parts").iterdir()} == set(settings.students)


def test_a_teacher_of_classes_has_no_prompts_in_its_notes(usual, root, folders):
    taken = notes(root, params.Teacher(source=str(folders / "classes")))
    assert taken["sample"] == taken["evaluate"] == {}


def test_what_cannot_be_a_teacher_is_refused_in_a_sentence(root, reader, tmp_path):
    def refused(sentence, **entry):
        with pytest.raises(ValueError, match=sentence) as error:
            source.check("mine", params.Teacher(**entry))
        assert "\n" not in str(error.value)

    refused("nobody/knows, has no revision: write the commit", source="nobody/knows")
    refused(
        "nobody/knows at revision main, is not in this machine's cache",
        source="nobody/knows",
        revision="main",
    )
    refused(
        "has no model_index.json.* folder in which a pipeline", source=str(tmp_path / "missing")
    )
    refused("has no model_index.json.*Get a clone that holds it", source="data/teachers/missing")
    refused("make rehearse TEACHER=mine writes it", source=".scratch/rehearse/missing")
    refused("models/missing, has no revision.* no folder of this name", source="models/missing")
    listed = tmp_path / "my.txt"
    refused("no file of prompts .*my.txt", source=str(reader), prompts=str(listed))
    listed.write_text("\n \n")
    refused("my.txt is empty", source=str(reader), prompts=str(listed))
    listed.write_bytes(b"\xff\xfe\x00")
    refused("no text file in UTF-8", source=str(reader), prompts=str(listed))
    listed.write_text("a " * 4000)
    refused("line 1: a prompt of 8000 characters", source=str(reader), prompts=str(listed))
    weights = next((reader / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    refused("transformer has .*bin and no safetensors", source=str(reader))
    config = reader / "transformer" / "config.json"
    for name, reason in (
        ("SanaTransformer2DModel", "linear already"),
        ("NobodyKnows", "supported are DiT"),
    ):
        config.write_text(json.dumps({"_class_name": name}))
        refused(f"holds a {name}, which is not supported: .*{reason}", source=str(reader))
    config.unlink()
    refused("has no denoising model", source=str(reader))


def test_a_mark_of_byte_order_and_repetitions_are_no_prompts(tmp_path):
    listed = tmp_path / "my.txt"
    lines = ["a red disc", "", "ein Bär", *["a red disc"] * 8]
    listed.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert prompts.read(listed) == ["a red disc", "ein Bär"]


def test_every_fifth_prompt_is_held_out_and_a_short_list_serves_twice():
    listed = [f"prompt {number}" for number in range(12)]
    learned, held_out = prompts.learned(listed), prompts.held_out(listed)
    assert held_out == ["prompt 4", "prompt 9"]
    assert sorted(learned + held_out) == sorted(listed)
    assert prompts.learned(listed[:4]) == prompts.held_out(listed[:4]) == listed[:4]
    assert (prompts.learned(listed[:5]), prompts.held_out(listed[:5])) == (listed[:4], listed[4:5])


def test_prompts_for_a_teacher_of_classes_or_of_the_small_world_are_refused(folders):
    made = teachers.load(folders / "classes")
    entry = params.Teacher(source="classes", prompts="my.txt")
    with pytest.raises(ValueError, match="4 classes: leave prompts out"):
        prompts.to_learn_from(entry, made)
    small = teachers.load(params.load("nano").teacher("text").name_or_path)
    with pytest.raises(ValueError, match="captions of the small world"):
        prompts.to_learn_from(entry, small)
    assert prompts.to_learn_from(params.Teacher(source="small"), small) is None


def test_a_teacher_that_reads_is_evaluated_on_prompts_that_no_student_learned(folders, tmp_path):
    listed = [f"prompt {number}" for number in range(10)]
    (tmp_path / "my.txt").write_text("\n".join(listed))
    entry = params.Teacher(source="reader", prompts=str(tmp_path / "my.txt"))
    made = teachers.load(folders / "reader")
    assert prompts.to_evaluate_on(entry, made) == ["prompt 4", "prompt 9"]
    learned = prompts.to_learn_from(entry, made)
    assert sorted([*learned, "prompt 4", "prompt 9"]) == listed


def test_an_entry_replaces_the_card_and_the_dtype(folders):
    entry = params.Teacher(source=str(folders / "reader"), side=64, guidance=2.0, dtype="bfloat16")
    made = teachers.load(entry.name_or_path, **entry.loading)
    assert (made.card["side"], made.card["guidance"]) == (64, 2.0)
    assert next(made.model.parameters()).dtype == params.schema.DTYPES["bfloat16"]
    assert not made.judged


def test_a_teachers_own_numbers_are_its_students_alone():
    settings = params.load("real")
    assert settings.of("sd35").evaluate.pictures == 512
    assert settings.of("sd15").evaluate.pictures == settings.evaluate.pictures == 2048
    assert settings.recipe("sd15-clear").steps == 4000
    assert settings.recipe("bk-clear").steps == settings.distill.steps
    assert settings.recipe("flux-clear").batch == 32
    assert settings.recipe("flux-clear").micro == 1


def test_a_wrong_number_of_a_teacher_is_named_by_its_path():
    content = project.ROOT / "params.yaml"
    from ruamel.yaml import YAML

    plain = YAML(typ="safe").load(content)
    plain["teachers"]["class"] = {**plain["teachers"]["class"], "evaluate": {"pictures": "many"}}
    with pytest.raises(ValueError, match=r"teachers\.class\.evaluate\.pictures is 'many'"):
        params.parse(plain)
    plain["teachers"]["class"]["evaluate"] = {"picture": 8}
    with pytest.raises(ValueError, match="'picture': did you mean 'pictures'"):
        params.parse(plain)


def test_a_repository_in_the_hubs_cache_is_a_teacher_at_its_commit(folders, tmp_path):
    """The cache as the hub's library lays it out; no network is asked."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--nobody--knows"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folders / "reader", repository / "snapshots" / commit)
    (tmp_path / "my.txt").write_text("a bird\n")
    code = (
        "import dataclasses, pathlib, sys\n"
        "from linattn import params, project, roles, source\n"
        "entry = params.Teacher(source='nobody/knows', revision='main', side=32,"
        " prompts='my.txt')\n"
        "settings = dataclasses.replace(params.load('nano'), teachers={'mine': entry})\n"
        "project.ROOT = pathlib.Path(sys.argv[1])\n"
        "with project.pipeline():\n"
        "    notes = source.note('mine', settings)\n"
        "made = roles.load(settings, 'mine', 'cpu')\n"
        "commit = project.read_json(notes / 'model.json')['revision']['commit']\n"
        "print(commit, type(made.pipe).__name__, made.card['side'])\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(repository.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [commit, "PixArtSigmaPipeline", "32"], done.stderr[-2000:]


def test_a_branch_that_moves_after_the_note_is_loaded_at_the_noted_commit(usual, root, monkeypatch):
    """Two stages of one run must not take two models."""
    entry = params.Teacher(source="nobody/knows", revision="main", dtype="bfloat16")
    settings = settings_of(entry)
    loaded = []
    monkeypatch.setattr(teachers, "load", lambda *args, **kwargs: loaded.append(kwargs["revision"]))
    roles.load(settings, "mine")
    note = {"source": "nobody/knows", "revision": {"name": "main", "commit": "0123abc"}}
    folder = root / "data" / "sources" / "mine"
    project.write_json(folder / "model.json", note)
    roles.load(settings, "mine")
    roles.load(settings, "mine", "cpu", revision="v2")
    elsewhere = dataclasses.replace(entry, revision="v1")
    roles.load(settings_of(elsewhere), "mine")
    project.write_json(folder / "model.json", {**note, "source": "nobody/else"})
    roles.load(settings, "mine")
    assert loaded == ["main", "0123abc", "v2", "v1", "main"]


def test_a_large_file_is_read_once_and_the_hubs_name_of_a_blob_is_its_digest(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "LARGE", 4)
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"some weights")
    first = source._digest(file)
    assert first == digests.of_file(file)
    monkeypatch.setattr(digests, "of_file", lambda path: pytest.fail("the file was read again"))
    assert source._digest(file) == first
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"anything")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert source._digest(link) == "ab" * 32
    monkeypatch.undo()
    file.write_bytes(b"SOME WEIGHTS")  # as many bytes, at another time
    os.utime(file, ns=(0, 0))
    assert source._digest(file) != first


def test_a_folder_saved_before_its_class_had_a_name_is_a_teacher(reader):
    config = reader / "transformer" / "config.json"
    content = json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}
    config.write_text(json.dumps(content))
    teacher = params.Teacher(source=str(reader))
    assert source.check("mine", teacher) == reader
    assert params.class_of(teacher) == "PixArtTransformer2DModel"
    assert configs.class_name(content | {"norm_type": "ada_norm_zero"}) == "DiTTransformer2DModel"
    config.write_text(json.dumps(content | {"norm_type": "layer_norm"}))
    with pytest.raises(ValueError, match="holds a Transformer2DModel, which is not supported"):
        source.check("mine", teacher)


@pytest.mark.parametrize("section", ["sample", "evaluate"])
def test_steps_too_few_for_the_teachers_scheduler_are_refused_with_what_to_write(
    usual, root, tmp_path, section
):
    """Qwen-Image's times are stretched to end at a last one, which a single step cannot."""
    pipe = kinds.pipeline("qwen")
    pipe.scheduler.register_to_config(shift_terminal=0.02)
    pipe.save_pretrained(tmp_path / "stretched")
    teacher = params.Teacher(source=str(tmp_path / "stretched"), **{section: {"steps": 1}})
    with pytest.raises(ValueError, match=rf"takes 2 or more: write {section}: {{steps: 2}}"):
        notes(root, teacher)
    assert notes(root, dataclasses.replace(teacher, **{section: {"steps": 2}}))


def test_no_weights_are_loaded_from_pickles():
    calls = []
    for path in sorted((project.ROOT / "linattn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("from_pretrained", "load_lora_weights", "download"):
                    calls.append((ast.unparse(node), words))
    schedulers = [call for call, _ in calls if "scheduler" in call]
    strict = [call for call, words in calls if "use_safetensors" in words or None in words]
    assert len(schedulers) + len(strict) == len(calls) >= 6, calls
