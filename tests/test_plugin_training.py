"""Plug-ins are trained on a tiny random Stable Diffusion, stored, killed, mounted and measured."""

import contextlib
import dataclasses
import functools
import json
import math
import warnings

import pytest
import test_plugins as tiny_plugins
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file

import linattn
from linattn import project, teachers, world
from linattn.studies.plugins import (
    adapter,
    batch,
    bench as benches,
    control,
    encoder,
    lora,
    make,
    marks,
    plugin,
    recipe,
    recolour,
    report,
    settings as numbers,
    study,
)
from linattn.surgery import identity
from linattn.world import judge

SIDE = 32
ENCODER = recipe.Recipe(steps=3, batch=4, rate=1e-3, seed=0)
WORDS = recipe.Recipe(steps=2, batch=4, rate=1e-3, seed=0)
# 4 steps show
RECIPE = recipe.Recipe(steps=4, batch=4, rate=3e-2, seed=0, rank=2, encoder=ENCODER, words=WORDS)
PART = numbers.Measure(pictures=3, steps=2, batch=2, seed=5, checked=2, shown=2)
NAMES = list(numbers.PLUGINS)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "sd-tiny"
    tiny_plugins.pipeline().save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"steps": 2, "guidance": 3.0, "side": SIDE}))
    return folder


@pytest.fixture(scope="module")
def settings(teacher_folder):
    recipes = dict.fromkeys(NAMES, RECIPE)
    return numbers.Settings(
        teacher=str(teacher_folder), students=("tiny",), recipes=recipes, measure=PART
    )


@pytest.fixture(scope="module")
def student(teacher_folder, tmp_path_factory):
    pipe = teachers.load(teacher_folder).pipe
    tiny_plugins.linearize(pipe)
    return linattn.save(pipe, tmp_path_factory.mktemp("student"))


def train(name, settings, root, patch):
    """Train as the study does, below `root`."""
    patch.setattr(project, "artifact", lambda relative, write=False: root / relative)
    patch.setattr(project, "scratch", lambda name, **_: root / "scratch" / name)
    return make.train(name, settings)


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory):
    """Return the root of all trained plug-ins, and the curves of their trainings."""
    root = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        curves = {name: train(name, settings, root, patch) for name in NAMES}
    return root, curves


@pytest.fixture
def bench(settings, student, made, monkeypatch):
    monkeypatch.setattr(project, "artifact", lambda relative, write=False: made[0] / relative)
    monkeypatch.setattr(project, "published", lambda path: student)
    return benches.Bench(settings)


def weights(folder):
    return {
        str(path.relative_to(folder)): load_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }


# Training and storing


def test_published_formats(made, bench):
    """Hold the files to what diffusers expects; its loaders read them in every other test."""
    home = made[0] / "data" / "plugins"
    config = ControlNetModel.from_pretrained(home / "control").config
    assert config.conditioning_embedding_out_channels == [16, 32, 64]
    tuned = UNet2DConditionModel.from_pretrained(home / "recolour")
    assert identity.public_config(tuned) == identity.public_config(bench.teacher.model)
    factors = load_file(home / "lora-attn1" / "pytorch_lora_weights.safetensors")
    assert len(factors) == 2 * 4 * 7  # two factors of q, k, v and out in seven layers
    assert all(name.startswith("unet.") and ".attn1." in name for name in factors)
    state = load_file(home / "adapter" / "models" / "ip.safetensors")
    indices = {name.split(".")[1] for name in state if name.startswith("ip_adapter")}
    assert indices == {str(index) for index in range(1, 14, 2)}
    assert (home / "adapter" / "models" / "image_encoder" / "config.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_training_changes_the_plugin_and_nothing_of_the_teacher(name, made, settings, bench):
    _, curves = made
    stages = {row["stage"] for row in curves[name]}
    assert stages == ({"encoder", "words", "plugin"} if name == "adapter" else {"plugin"})
    assert all(math.isfinite(row["loss"]) and row["gradient"] > 0 for row in curves[name])
    assert not any("seconds" in row for row in curves[name])
    fresh = teachers.load(settings.teacher).model.state_dict()
    pipe = numbers.PLUGINS[name].mount(bench.pipe(), numbers.folder(name))
    state = pipe.unet.state_dict()
    base = {key.replace(".base_layer.", "."): tensor for key, tensor in state.items()}
    same = [torch.equal(base[key], tensor) for key, tensor in fresh.items()]
    assert all(same) == (name != "recolour")


@pytest.mark.parametrize("name", NAMES)
def test_every_training_is_on_the_teachers_device(name, settings, made, monkeypatch, tmp_path):
    """Compute a loss of each training on the meta device, whose tensors mix with no other's."""
    here = benches.Bench(settings)
    copied = functools.partial(ControlNetModel.from_unet, here.teacher.model)
    monkeypatch.setattr(project, "device", lambda: "meta")
    teacher, seen = benches.Bench(settings).teacher, []

    def learn(recipe, model, parameters, loss, scratch, **about):
        devices = {parameter.device.type for _, parameter in parameters}
        seen.append({loss(0).device.type, *devices})
        return []

    def autocast(device, dtype):
        assert device == "meta"
        return contextlib.nullcontext()  # meta has no autocast

    monkeypatch.setattr(torch, "autocast", autocast)
    for module in (adapter, control, encoder, lora, recolour):
        monkeypatch.setattr(module, "learn", learn)
    # Meta tensors can neither be copied nor stored; the adapter goes on from what it has stored.
    monkeypatch.setattr(ControlNetModel, "from_unet", lambda unet, **kwargs: copied(**kwargs))
    monkeypatch.setattr(adapter, "_state", lambda *_: {})
    monkeypatch.setattr(adapter, "store", lambda *_: None)
    folder = made[0] / "data" / "plugins" / "adapter"
    stored = adapter.Adapter().mount(here.pipe(), folder).to("meta")
    monkeypatch.setattr(adapter.Adapter, "mount", lambda self, pipe, folder: stored)
    # Storing, which follows the training, raises on meta; below it is asserted that each training
    # was reached.
    with contextlib.suppress(NotImplementedError):
        numbers.PLUGINS[name].make(teacher, RECIPE, tmp_path, tmp_path / "out")
    assert seen == [{"meta"}] * (3 if name == "adapter" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_is_mounted_on_the_pipelines_device(name, settings, made, bench, monkeypatch):
    monkeypatch.setattr(project, "device", lambda: "meta")
    elsewhere = benches.Bench(settings)
    pipe = numbers.PLUGINS[name].mount(elsewhere.pipe(), numbers.folder(name))
    devices = set()
    for component in (elsewhere.judge, *pipe.components.values()):
        if isinstance(component, torch.nn.Module):
            devices |= {parameter.device.type for parameter in component.parameters()}
    assert devices == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_ends_like_an_undisturbed_one(
    name, settings, made, monkeypatch, tmp_path
):
    monkeypatch.setattr(recipe, "EVERY", 1)
    real, calls = batch.of_step, []

    def dying(seed, step, count):
        calls.append(step)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return real(seed, step, count)

    monkeypatch.setattr(batch, "of_step", dying)
    for _ in range(3):
        try:
            train(name, settings, tmp_path, monkeypatch)
            break
        except KeyboardInterrupt:
            continue
    assert len(calls) > 3
    # once for the encoder, the words and the adapter itself
    assert calls.count(0) == (3 if name == "adapter" else 1)
    resumed = weights(tmp_path / "data" / "plugins" / name)
    undisturbed = weights(made[0] / "data" / "plugins" / name)
    assert resumed.keys() == undisturbed.keys()
    for file in undisturbed:
        for key, tensor in undisturbed[file].items():
            assert torch.equal(resumed[file][key], tensor), (file, key)


# Bit for bit


@pytest.mark.parametrize("body", [0, 1], ids=["softmax", "student"])
@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_changes_pictures_and_is_removed_bit_for_bit(name, body, bench):
    bits = study.checks(bench, numbers.PLUGINS[name], bench.bodies[body])
    assert bits == dict.fromkeys(bits, True)
    expected = {"differs"} if name == "recolour" else {"differs", "silenced", "removed"}
    if body:
        expected |= {"restored"} if name == "recolour" else {"either order", "restored"}
    assert set(bits) == expected


def test_a_check_sees_a_plugin_that_stays(bench, monkeypatch):
    monkeypatch.setattr(lora.Lora, "remove", lambda self, pipe: None)
    assert not study.checks(bench, numbers.PLUGINS["lora-attn1"], bench.bodies[0])["removed"]


def test_a_fine_tune_takes_the_students_layers_and_keeps_its_own_weights(bench):
    """Self-attention is the student's, all else the fine-tune's, and no warning is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe = benches.mounted(bench, numbers.PLUGINS["recolour"], bench.bodies[1])
    tuned = UNet2DConditionModel.from_pretrained(numbers.folder("recolour")).state_dict()
    student = load_file(bench.bodies[1].folder / "linattn.safetensors")
    for key, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, student[key] if ".attn1." in key else tuned[key]), key
    raw = benches.mounted(bench, numbers.PLUGINS["recolour"], bench.bodies[1].raw).unet.state_dict()
    assert all(torch.equal(raw[key], tensor) for key, tensor in tuned.items())
    assert raw.keys() == pipe.unet.state_dict().keys()


# Questions and marks


def test_edges_are_the_things_outline_before_a_plain_background():
    (scene,) = plugin.scenes(1, 4)
    plain = dataclasses.replace(scene, background=world.Background("plain", "black", 0.3))
    picture = world.render([plain], 64)
    edges, inside = control.edges(picture)[0, 0], marks.things(picture)[:, None].float()
    wide, narrow = grown(inside), 1 - grown(1 - inside)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    assert not (edges * (1 - wide)).any()
    assert not (edges * narrow).any()
    outline = inside - (1 - grown(1 - inside, 1))  # the thing's pixels beside others
    # A neighbour above or on the left may be marked instead.
    assert (edges * outline).sum() > 0.4 * outline.sum()
    assert not control.edges(torch.full((1, 3, 16, 16), 0.3)).any()


def grown(mask, by=2):
    return torch.nn.functional.max_pool2d(mask, 2 * by + 1, stride=1, padding=by)[0, 0]


def test_true_pictures_are_marked_right_and_others_wrong():
    classifier = judge.load(project.ROOT / "data" / "judge")
    for name, trained in numbers.PLUGINS.items():
        for question in trained.questions(40, 9, 64).values():
            others = [*question.scenes[1:], question.scenes[0]]
            right = trained.marks(classifier, world.render(question.scenes, 64), question)
            wrong = trained.marks(classifier, world.render(others, 64), question)
            for mark in right:
                assert right[mark].float().mean() > 0.97, (name, mark)
                if mark != "dots":
                    assert wrong[mark].float().mean() < 0.6, (name, mark)


def test_every_background_is_recognised_behind_every_thing():
    scenes = plugin.scenes(200, 11)
    names = tuple(world.BACKGROUNDS)
    wanted = torch.tensor([names.index(scene.background.kind) for scene in scenes])
    assert (marks.backgrounds(world.render(scenes, 64)) == wanted).all()
    assert len(wanted.unique()) == len(names)


def test_no_caption_gives_the_answer_away():
    plugins = numbers.PLUGINS.items()
    questions = {name: trained.questions(30, 2, SIDE) for name, trained in plugins}
    of_control = questions["control"]
    for caption in of_control["shape not named"].captions:
        assert not any(shape in caption for shape in world.SHAPES)
    captions = of_control["another shape named"].captions
    for caption, scene in zip(captions, of_control["shape named"].scenes, strict=True):
        assert f" {scene.things[0].shape} " not in caption
    assert set(questions["adapter"]["no caption"].captions) == {""}
    assert not any(
        lora.STYLE in text for text in questions["lora-attn1"]["another background"].captions
    )
    turned = questions["recolour"]["colours turned"]
    for text, scene in zip(turned.captions, turned.scenes, strict=True):
        assert f" {scene.things[0].colour} " not in text


def test_colours_are_turned_among_themselves():
    turned = {}
    for scene in plugin.scenes(200, 0):
        turned[scene.things[0].colour] = recolour.turned(scene).things[0].colour
    assert set(turned) == set(turned.values()) == set(world.COLOURS)
    assert not any(before == after for before, after in turned.items())


# The study


def test_the_study_is_the_same_twice_and_the_report_reads_it(
    bench, settings, made, monkeypatch, tmp_path
):
    monkeypatch.setattr(project, "artifact", lambda path, write=False: made[0] / path)
    monkeypatch.setattr(project, "study", lambda file, write=False: tmp_path / file)
    monkeypatch.setattr(study, "QUICK", 1)
    assert report.sections() == []
    few = ("adapter", "recolour")
    first = study.measure(settings, few)
    texts = {name: (tmp_path / name).read_bytes() for name in (numbers.RESULT, numbers.SHEET)}
    study.measure(settings, few)
    assert texts == {name: (tmp_path / name).read_bytes() for name in texts}
    assert "seconds" not in texts[numbers.RESULT].decode()
    assert project.read_json(tmp_path / "plugins.run.json")["facts"]["versions"]["torch"]
    rows = first["plugins"]["adapter"]["rows"]
    assert [row["body"] for row in rows] == ["softmax", "tiny"]
    assert [row["body"] for row in first["plugins"]["recolour"]["rows"]] == [
        "softmax",
        "tiny",
        "tiny, not distilled",
    ]
    assert all(row["with"]["shape"]["n"] == 3 and row["difference"]["value"] > 0 for row in rows)
    shots = report._shots(first, tmp_path / numbers.SHEET)
    shown = numbers.PLUGINS["adapter"].questions(3, PART.seed, SIDE)["no caption"].shown
    read = torch.tensor(shots["adapter"]["shown"]) / 255  # a JPEG of 16 px pictures
    assert (read - shown[:2]).abs().mean() < 0.02
    titles, bodies = zip(*report.sections(), strict=True)
    assert titles[1:] == tuple(report.TITLES[name] for name in few)
    assert all("alt=" in body for body in bodies[1:])


def share(right, n=100):
    return marks.shares({"shape": torch.arange(n) < right})["shape"]


def test_sentences_say_what_does_nothing_and_what_does_less():
    rows = [
        {
            "body": body,
            "question": "no caption",
            "with": {"shape": share(ours)},
            "without": {"shape": share(10)},
        }
        for body, ours in (("softmax", 90), ("sd-linfusion", 85), ("sd-lit", 12))
    ]
    first, *others = report.findings({"rows": rows, "obeys": ["shape"]})
    assert (
        "on softmax shape 90.0\u00a0% (82.6 to 94.5), without it 10.0\u00a0%; on sd-linfusion"
        in first
    )
    idle, weaker = others
    assert idle == (
        "No caption: on sd-lit shape is not right more often with it than without, as far as this "
        "tells."
    )
    assert weaker == (
        "No caption: on sd-lit shape is right less often than on softmax, 12.0\u00a0% against "
        "90.0\u00a0%."
    )
    other = [{**row, "question": "shape named", "with": {"shape": share(11)}} for row in rows[:1]]
    *_, last = report.findings({"rows": [*rows, *other], "obeys": ["shape"]})
    assert last.startswith("Shape named: on softmax shape is not right more often")
    assert (
        report._bit("removed", {"softmax": {"removed": True}, "sd-lit": {"removed": False}})
        == "not on sd-lit"
    )


def test_the_studys_settings_are_read_strictly(tmp_path):
    assert set(numbers.load().recipes) == set(NAMES)
    text = (project.ROOT / numbers.PARAMS).read_text()
    for before, after, message in (
        ("pictures:", "picture:", "measure: 'picture': did you mean 'pictures'"),
        ("recipes:", "recipe:", "did you mean 'recipes'"),
        ("control:", "controll:", "did you mean 'control'"),
        ("rank:", "ranks:", "recipes.lora-attn1: 'ranks': did you mean 'rank'"),
        (
            "words: {steps: 400",
            "words: {step: 400",
            "recipes.adapter.words: 'step': did you mean 'steps'",
        ),
        ("optimizer: muon", "optimizer: moun", "did you mean 'muon'"),
        ("shown: 6", "shown: six", "measure.shown is 'six' .* it must be a whole number"),
    ):
        (tmp_path / "params.yaml").write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=message):
            numbers.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(("small", "more"), [(0, ""), (500, ", 500 of them at half the side")])
def test_the_report_says_how_a_plugin_was_trained(small, more):
    trained = report._trained({"steps": 1000, "batch": 4, "small": small})
    assert trained == f"Training: 1,000 steps of 4 pictures{more}."
