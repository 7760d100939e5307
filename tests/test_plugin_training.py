"""Plug-ins trained on a tiny random Stable Diffusion: published formats, bits that come back, kills
without a trace.
"""

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
def told(teacher_folder):
    recipes = dict.fromkeys(NAMES, RECIPE)
    return numbers.Settings(
        teacher=str(teacher_folder), students=("tiny",), recipes=recipes, measure=PART
    )


@pytest.fixture(scope="module")
def student(teacher_folder, tmp_path_factory):
    pipe = teachers.load(teacher_folder).pipe
    tiny_plugins.linearize(pipe)
    return linattn.save(pipe, tmp_path_factory.mktemp("student"))


def train(name, told, root, patch):
    """As the study does, below `root`."""
    patch.setattr(project, "place", lambda relative, write=False: root / relative)
    patch.setattr(project, "scratch", lambda name, **told: root / "scratch" / name)
    return make.train(name, told)


@pytest.fixture(scope="module")
def made(told, tmp_path_factory):
    """Every plug-in in its published format, and the curves of the trainings."""
    root = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        curves = {name: train(name, told, root, patch) for name in NAMES}
    return root, curves


@pytest.fixture
def bench(told, student, made, monkeypatch):
    monkeypatch.setattr(project, "place", lambda relative, write=False: made[0] / relative)
    monkeypatch.setattr(project, "published", lambda path: student)
    return benches.Bench(told)


def weights(folder):
    return {
        str(path.relative_to(folder)): load_file(path)
        for path in sorted(folder.rglob("*.safetensors"))
    }


# Training and storing


def test_published_formats(made, bench):
    """What diffusers and others expect to find there; that its loaders read them is what every
    other test lives on.
    """
    home = made[0] / "data" / "plugins"
    assert ControlNetModel.from_pretrained(
        home / "control"
    ).config.conditioning_embedding_out_channels == [16, 32, 64]
    tuned = UNet2DConditionModel.from_pretrained(home / "recolour")
    assert identity.public_config(tuned) == identity.public_config(bench.teacher.model)
    factors = load_file(home / "lora-attn1" / "pytorch_lora_weights.safetensors")
    assert len(factors) == 2 * 4 * 7  # two factors of q, k, v and out in seven layers
    assert all(name.startswith("unet.") and ".attn1." in name for name in factors)
    state = load_file(home / "adapter" / "models" / "ip.safetensors")
    assert {name.split(".")[1] for name in state if name.startswith("ip_adapter")} == {
        str(number) for number in range(1, 14, 2)
    }
    assert (home / "adapter" / "models" / "image_encoder" / "config.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_training_moves_what_is_stored_and_nothing_of_the_teacher(name, made, told, bench):
    _, curves = made
    stages = {row["stage"] for row in curves[name]}
    assert stages == ({"encoder", "words", "plugin"} if name == "adapter" else {"plugin"})
    assert all(math.isfinite(row["loss"]) and row["gradient"] > 0 for row in curves[name])
    assert not any("seconds" in row for row in curves[name])
    fresh = teachers.load(told.teacher).model.state_dict()
    pipe = numbers.PLUGINS[name].mount(bench.pipe(), numbers.folder(name))
    base = {
        key.replace(".base_layer.", "."): tensor for key, tensor in pipe.unet.state_dict().items()
    }
    same = [torch.equal(base[key], tensor) for key, tensor in fresh.items()]
    assert all(same) == (name != "recolour")


@pytest.mark.parametrize("name", NAMES)
def test_every_training_is_on_the_teachers_device(name, told, made, monkeypatch, tmp_path):
    """That of tensors without values, which no other device's may meet: a loss of each training,
    and what it trains.
    """
    here = benches.Bench(told)
    copied = functools.partial(ControlNetModel.from_unet, here.teacher.model)
    monkeypatch.setattr(project, "device", lambda: "meta")
    teacher, seen = benches.Bench(told).teacher, []

    def learn(recipe, model, parameters, loss, scratch, **about):
        seen.append({loss(0).device.type, *(each.device.type for _, each in parameters)})
        return []

    def autocast(device, dtype):
        assert device == "meta"
        return contextlib.nullcontext()  # there it has none

    monkeypatch.setattr(torch, "autocast", autocast)
    for module in (adapter, control, encoder, lora, recolour):
        monkeypatch.setattr(module, "learn", learn)
    # Nothing can be copied from there or stored; the adapter goes on from what it has stored.
    monkeypatch.setattr(ControlNetModel, "from_unet", lambda unet, **how: copied(**how))
    monkeypatch.setattr(adapter, "_state", lambda *parts: {})
    monkeypatch.setattr(adapter, "store", lambda *parts: None)
    stored = (
        adapter.Adapter().mount(here.pipe(), made[0] / "data" / "plugins" / "adapter").to("meta")
    )
    monkeypatch.setattr(adapter.Adapter, "mount", lambda self, pipe, folder: stored)
    # What comes after the training is storing, which meta cannot; that the training was reached is
    # asserted below.
    with contextlib.suppress(NotImplementedError):
        numbers.PLUGINS[name].make(teacher, RECIPE, tmp_path, tmp_path / "out")
    assert seen == [{"meta"}] * (3 if name == "adapter" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_mounted_where_the_pipeline_is(name, told, made, bench, monkeypatch):
    monkeypatch.setattr(project, "device", lambda: "meta")
    elsewhere = benches.Bench(told)
    pipe = numbers.PLUGINS[name].mount(elsewhere.pipe(), numbers.folder(name))
    parts = [
        part
        for part in (elsewhere.eye, *pipe.components.values())
        if isinstance(part, torch.nn.Module)
    ]
    assert {each.device.type for part in parts for each in part.parameters()} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_is_undisturbed(name, told, made, monkeypatch, tmp_path):
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
            train(name, told, tmp_path, monkeypatch)
            break
        except KeyboardInterrupt:
            continue
    assert len(calls) > 3
    assert calls.count(0) == (
        3 if name == "adapter" else 1
    )  # once for the encoder, the words and the adapter itself
    found, wanted = (weights(root / "data" / "plugins" / name) for root in (tmp_path, made[0]))
    assert found.keys() == wanted.keys()
    for file in wanted:
        for key, tensor in wanted[file].items():
            assert torch.equal(found[file][key], tensor), (file, key)


# Bit for bit


@pytest.mark.parametrize("body", [0, 1], ids=["softmax", "student"])
@pytest.mark.parametrize("name", NAMES)
def test_it_differs_and_goes_away_bit_for_bit(name, body, bench):
    bits = study.checks(bench, numbers.PLUGINS[name], bench.bodies[body])
    assert bits == dict.fromkeys(bits, True)
    part = {"differs", "silenced", "removed"} | ({"either order", "restored"} if body else set())
    assert set(bits) == (
        part if name != "recolour" else {"differs"} | ({"restored"} if body else set())
    )


def test_a_check_sees_a_plugin_that_stays(bench, monkeypatch):
    monkeypatch.setattr(lora.Lora, "remove", lambda self, pipe: None)
    assert not study.checks(bench, numbers.PLUGINS["lora-attn1"], bench.bodies[0])["removed"]


def test_a_fine_tune_takes_the_layers_and_not_what_was_trained_elsewhere(bench):
    """Mounted: the student's own attention, the fine-tune's everything else; without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe = benches.mounted(bench, numbers.PLUGINS["recolour"], bench.bodies[1])
    tuned = UNet2DConditionModel.from_pretrained(numbers.folder("recolour")).state_dict()
    own = load_file(bench.bodies[1].folder / "linattn.safetensors")
    for key, tensor in pipe.unet.state_dict().items():
        assert torch.equal(tensor, own[key] if ".attn1." in key else tuned[key]), key
    raw = benches.mounted(bench, numbers.PLUGINS["recolour"], bench.bodies[1].raw).unet.state_dict()
    assert all(torch.equal(raw[key], tensor) for key, tensor in tuned.items())
    assert raw.keys() == pipe.unet.state_dict().keys()


# Asking and marking


def test_edges_are_the_things_outline_before_a_plain_background():
    (scene,) = plugin.scenes(1, 4)
    plain = dataclasses.replace(scene, background=world.Background("plain", "black", 0.3))
    picture = world.render([plain], 64)
    found, inside = control.edges(picture)[0, 0], marks.things(picture)[:, None].float()
    wide, narrow = grown(inside), 1 - grown(1 - inside)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert not (found * (1 - wide)).any()
    assert not (found * narrow).any()
    outline = inside - (1 - grown(1 - inside, 1))  # its own pixels beside others
    # or the neighbour's, above or on the left, is marked
    assert (found * outline).sum() > 0.4 * outline.sum()
    assert not control.edges(torch.full((1, 3, 16, 16), 0.3)).any()


def grown(mask, by=2):
    return torch.nn.functional.max_pool2d(mask, 2 * by + 1, stride=1, padding=by)[0, 0]


def test_true_pictures_are_marked_right_and_others_wrong():
    eye = judge.load(project.ROOT / "data" / "judge")
    for name, each in numbers.PLUGINS.items():
        for asked in each.questions(40, 9, 64).values():
            right = each.marks(eye, world.render(asked.scenes, 64), asked)
            wrong = each.marks(eye, world.render([*asked.scenes[1:], asked.scenes[0]], 64), asked)
            for mark in right:
                assert right[mark].float().mean() > 0.97, (name, mark)
                if mark != "dots":
                    assert wrong[mark].float().mean() < 0.6, (name, mark)


def test_every_kind_of_background_is_told_behind_every_thing():
    told = plugin.scenes(200, 11)
    kinds = tuple(world.BACKGROUNDS)
    wanted = torch.tensor([kinds.index(scene.background.kind) for scene in told])
    assert (marks.backgrounds(world.render(told, 64)) == wanted).all()
    assert len(wanted.unique()) == len(kinds)


def test_no_caption_gives_the_answer_away():
    questions = {name: each.questions(30, 2, SIDE) for name, each in numbers.PLUGINS.items()}
    asked = questions["control"]
    assert not any(
        shape in text for text in asked["shape not named"].captions for shape in world.SHAPES
    )
    for text, scene in zip(
        asked["another shape named"].captions, asked["shape named"].scenes, strict=True
    ):
        assert f" {scene.things[0].shape} " not in text
    assert set(questions["adapter"]["no caption"].captions) == {""}
    assert not any(
        lora.STYLE in text for text in questions["lora-attn1"]["another background"].captions
    )
    turned = questions["recolour"]["colours turned"]
    for text, scene in zip(turned.captions, turned.scenes, strict=True):
        assert f" {scene.things[0].colour} " not in text


def test_colours_are_turned_among_themselves():
    told = {
        scene.things[0].colour: recolour.turned(scene).things[0].colour
        for scene in plugin.scenes(200, 0)
    }
    assert set(told) == set(told.values()) == set(world.COLOURS)
    assert not any(before == after for before, after in told.items())


# The study


def test_the_study_is_the_same_twice_and_the_report_reads_it(
    bench, told, made, monkeypatch, tmp_path
):
    monkeypatch.setattr(project, "place", lambda path, write=False: made[0] / path)
    monkeypatch.setattr(project, "study", lambda file, write=False: tmp_path / file)
    monkeypatch.setattr(study, "QUICK", 1)
    assert report.sections() == []
    few = ("adapter", "recolour")
    first = study.measure(told, few)
    texts = {name: (tmp_path / name).read_bytes() for name in (numbers.RESULT, numbers.SHEET)}
    study.measure(told, few)
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
    shots = report._shots(first)
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
    assert others == [
        "No caption: on sd-lit shape is not right more often with it than without, as far as this tells.",
        "No caption: on sd-lit shape is right less often than on softmax, 12.0\u00a0% against 90.0\u00a0%.",
    ]
    other = [{**row, "question": "shape named", "with": {"shape": share(11)}} for row in rows[:1]]
    *_, last = report.findings({"rows": [*rows, *other], "obeys": ["shape"]})
    assert last.startswith("Shape named: on softmax shape is not right more often")
    assert (
        report._bit("removed", {"softmax": {"removed": True}, "sd-lit": {"removed": False}})
        == "not on sd-lit"
    )


def test_the_studys_numbers_are_read_strictly(tmp_path):
    told = numbers.load()
    assert set(told.recipes) == set(NAMES)
    text = (project.ROOT / numbers.PARAMS).read_text()
    for before, after, said in (
        ("pictures:", "picture:", "measure: 'picture': .* did you mean 'pictures'"),
        ("recipes:", "recipe:", "did you mean 'recipes'"),
        ("control:", "controll:", "did you mean 'control'"),
        ("rank:", "ranks:", "recipes.lora-attn1: 'ranks': .* did you mean 'rank'"),
        (
            "words: {steps: 400",
            "words: {step: 400",
            "recipes.adapter.words: 'step': .* did you mean 'steps'",
        ),
        ("optimizer: muon", "optimizer: moun", "did you mean 'muon'"),
        ("shown: 6", "shown: six", "measure.shown is 'six' .* it must be a whole number"),
    ):
        (tmp_path / "params.yaml").write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=said):
            numbers.load(tmp_path / "params.yaml")
