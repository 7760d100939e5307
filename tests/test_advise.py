"""Advice: timers that compute make crossover, estimate and sentence exact; tiny models run."""

import json
import math
import sys
import types

import pytest
import tiny
import torch

from linattn import families
from linattn.advise import Advice, advise, backbone, parts, paths, picture, sizes, table
from linattn.advise.advice import BACKWARD, FORWARD
from linattn.advise.command import main
from linattn.advise.stopwatch import LEAST, UNTIMED, Cost, Stopwatch
from linattn.advise.verdict import between, pays, sentence
from linattn.attention import OPERATORS
from linattn.attention.base import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation.macs import macs
from linattn.shapes import SHAPES
from linattn.testing import models


class Formula:
    """Give seconds by formula, and note what it was asked to run."""

    def __init__(self, attention, outside=lambda size: 1e-3 * size.tokens, memory=None, free=1e12):
        self.formulas, self.seconds_outside, self.available = attention, outside, free
        self.memory = memory or {}
        self.ran = []

    def attention(self, size, paths, backward):
        costs = {}
        for path in paths:
            self.ran.append((path.name, size.side))
            result = self.formulas[path.name](size.tokens)
            if not isinstance(result, str):
                needed = round(self.memory.get(path.name, lambda tokens: tokens)(size.tokens))
                result = Cost(result * (3 if backward else 1), result, needed)
            costs[path.name] = result
        return costs

    def outside(self, size, backward):
        self.ran.append(("outside", size.side))
        seconds = self.seconds_outside(size) * (2 if backward else 1)
        return Cost(seconds, seconds)

    def free(self):
        return self.available


class Never:
    """Fail where anything is timed."""

    def attention(self, size, paths, backward):
        raise AssertionError("timed")

    outside = free = attention


def square(tokens):
    return 1e-6 * tokens**2


def slower(tokens):
    return 10 * square(tokens)


def linear(tokens):
    return 1e-3 * tokens


USUAL = {"flash": square, "math": slower, "mediator": linear}
SIDES = (128, 256, 512)  # 256, 1,024 and 4,096 tokens of the tiny DiT


def computed(attention=None, sides=SIDES, **options):
    """Return the advice on a tiny DiT, 8 px a token, by formulas."""
    timer = Formula({**USUAL, **(attention or {})}, **options.pop("timer", {}))
    usual = {"operators": ["mediator"], "device": "cpu", "seconds": 1e9, "timer": timer}
    return advise(tiny.model(), sides, **{**usual, **options}), timer


# From which side it pays


def test_the_crossover_is_where_both_lines_meet():
    """Softmax takes as long as the operator at 1,000 tokens, which is a side of 8 x 31.6 px."""
    advice, _ = computed()
    (crossover,) = pays(advice, FORWARD)
    assert crossover.side == pytest.approx(8 * math.sqrt(1000))
    assert not crossover.everywhere
    assert not crossover.estimated


def test_the_crossover_is_with_the_fastest_softmax():
    advice, _ = computed({"flash": slower, "math": square})
    assert pays(advice, FORWARD)[0].side == pytest.approx(8 * math.sqrt(1000))
    assert "nothing here is faster than math" in sentence(advice, FORWARD)


def test_an_operator_that_loses_again_pays_from_where_it_wins_for_good():
    times = {256: 0.5, 1024: 2, 4096: 0.5, 16384: 0.5}
    advice, _ = computed({"mediator": lambda n: times[n] * square(n)}, sides=(*SIDES, 1024))
    assert pays(advice, FORWARD)[0].side == pytest.approx(256 * math.sqrt(2))
    assert sentence(advice, FORWARD).startswith("At 128 px mediator is faster than flash already.")


def test_an_operator_that_never_wins_pays_nowhere():
    advice, _ = computed({"mediator": slower})
    assert pays(advice, FORWARD)[0].side is None
    assert "mediator  not up to 512 px" in "\n".join(table.lines(advice))


@pytest.mark.parametrize(
    ("ratios", "side"), [((0.5, 2), 200), ((0, 2), 400), ((0.5, math.inf), 400)]
)
def test_a_ratio_is_interpolated_in_logarithms(ratios, side):
    assert between((100, 400), ratios) == pytest.approx(side)


# The sentence


def test_the_sentence_names_the_side_both_steps_and_amdahls_limit():
    advice, _ = computed()
    assert sentence(advice, FORWARD) == (
        "Below about 250 px nothing here is faster than flash; from there on mediator is. "
        "At 512 px a step with mediator takes 8.19 s and one with flash 20.9 s: 2.55 times, "
        "where Amdahl's limit is 5.1."
    )


def test_the_sentence_says_that_nothing_pays():
    advice, _ = computed({"mediator": slower})
    assert sentence(advice, FORWARD).startswith("Up to 512 px nothing here is faster than flash.")


def test_the_sentence_says_that_it_pays_at_once():
    advice, _ = computed(sides=(512, 1024))
    assert sentence(advice, FORWARD).startswith("At 512 px mediator is faster than flash already.")


def test_backward_has_points_and_a_sentence_of_its_own():
    advice, _ = computed(backward=True)
    assert advice.modes == (FORWARD, BACKWARD)
    forward, both = (advice.at(mode, 512)[0].seconds for mode in advice.modes)
    assert both == 3 * forward
    assert sentence(advice, BACKWARD).startswith("Forward and backward. Below about 250 px")


# What is not run


def test_a_point_that_takes_too_long_is_estimated_by_its_growth():
    """The formula is a power of the tokens, so the estimate is the formula's own value."""
    advice, timer = computed(sides=(*SIDES, 1024), seconds=LEAST * slower(1024))
    at_1024 = {point.path: point for point in advice.at(FORWARD, 1024)}
    assert ("math", 512) not in timer.ran
    assert ("math", 256) in timer.ran
    assert at_1024["math"].estimated
    assert at_1024["math"].seconds == pytest.approx(slower(16384))
    assert at_1024["math"].bytes == pytest.approx(16384)
    assert not advice.at(FORWARD, 512)[2].estimated


def test_a_linear_path_is_estimated_by_its_own_growth():
    advice, timer = computed(sides=(*SIDES, 1024), seconds=LEAST * linear(1024))
    point = advice.at(FORWARD, 1024)[-1]
    assert ("mediator", 512) not in timer.ran
    assert point.seconds == pytest.approx(linear(16384))


def test_estimates_are_marked_in_table_crossover_and_sentence():
    advice, _ = computed(seconds=LEAST * square(256) * 1.01, timer={"outside": lambda size: 1e-9})
    assert pays(advice, FORWARD)[0].estimated
    assert sentence(advice, FORWARD).count("(estimated)") == 2
    text = "\n".join(table.lines(advice))
    assert "px, estimated" in text
    assert len([line for line in text.splitlines() if line.endswith("MB  estimated")]) >= 4


def test_outside_the_attention_is_estimated_by_the_rate_of_a_smaller_side():
    advice, timer = computed(timer={"outside": linear_outside}, seconds=1.0)
    small, *_, large = advice.outside
    assert ("outside", 512) not in timer.ran
    assert large.estimated
    assert large.seconds == pytest.approx(small.seconds * large.macs / small.macs, rel=0.02)
    assert "estimated by the rate of a smaller side" in "\n".join(table.lines(advice))


def linear_outside(size):
    return 1e-3 * size.tokens


def test_halves_are_run_before_a_large_side():
    advice, timer = computed(sides=(1024,))
    assert [side for name, side in timer.ran if name == "flash"] == [256, 512, 1024]
    assert {point.side for point in advice.points} == {1024}


def test_what_needs_more_memory_than_there_is_does_not_run():
    memory = {"math": lambda tokens: 1e6 * tokens**2}
    advice, timer = computed(timer={"memory": memory, "free": 2e12})
    reasons = [advice.at(FORWARD, side)[1].skipped for side in SIDES]
    assert reasons == [
        "",
        "",
        "by its growth it needs 1.68e+04 GB, and 2e+03 GB are free",
    ]
    assert ("math", 512) not in timer.ran
    assert advice.at(FORWARD, 512)[1].step is None


def test_a_path_that_cannot_run_says_why_and_is_not_tried_again():
    refusal = {256: "no kernel", 1024: "wrong", 4096: "wrong"}
    advice, timer = computed({"math": lambda tokens: refusal[tokens]})
    reasons = [advice.at(FORWARD, side)[1].skipped for side in SIDES]
    assert reasons == ["no kernel", "a smaller side was skipped", "a smaller side was skipped"]
    assert [side for name, side in timer.ran if name == "math"] == [128]
    assert "no kernel" in "\n".join(table.lines(advice))


def test_where_no_softmax_runs_any_operator_pays():
    nothing = {name: lambda tokens: "out of memory" for name in ("flash", "math")}
    advice, _ = computed(nothing)
    assert pays(advice, FORWARD)[0].everywhere
    assert "and no softmax runs" in sentence(advice, FORWARD)


# What is written


def test_a_written_advice_is_read_again():
    advice, _ = computed(backward=True)
    assert Advice.from_json(json.loads(json.dumps(advice.as_json()))) == advice
    assert advice.facts["versions"]["torch"] == torch.__version__


def test_a_step_is_the_attention_and_what_lies_outside():
    advice, _ = computed()
    for point in advice.points:
        outside = advice.outside_at(FORWARD, point.side)
        assert point.step == pytest.approx(point.seconds + outside.seconds)
        assert outside.seconds == 1e-3 * point.tokens


def test_the_picture_tells_what_the_sentence_says():
    advice, _ = computed(seconds=1.0)
    drawn = picture.steps(advice)
    assert sentence(advice, FORWARD) in drawn.alt
    assert drawn.png == picture.steps(advice).png
    assert drawn.size[0] > 800


# The model's shapes


@pytest.mark.parametrize("name", models.BACKBONES)
def test_the_parts_are_the_whole_model_without_its_attention(name):
    model = models.model(name)
    subject = backbone.find(model, text=8)
    side = subject.cell * 8
    counted = macs(model, subject.example_side(side))
    sizes.prepare(subject)
    size = sizes.measure(subject, side)
    assert size.macs == counted["total"] - counted["core"]
    layers = families.layers(model)
    assert sum(entry.count for entry in size.layers) == len(layers)
    in_parts = {id(weight) for part in size.parts for weight in part.module.parameters()}
    assert paths.macs(paths.Path("flash"), size) == counted["core"]
    loose = {id(weight) for weight in subject.model.parameters(recurse=False)}  # PixArt's table
    assert in_parts | loose == {id(weight) for weight in subject.model.parameters()}


def test_a_unet_has_a_grid_for_each_level():
    subject = backbone.find("sd15")
    sizes.prepare(subject)
    size = sizes.measure(subject, 512)
    grids = {(entry.grid.height, entry.shape.head_dim): entry.count for entry in size.layers}
    assert grids == {(64, 40): 5, (32, 80): 5, (16, 160): 5, (8, 160): 1}


def test_joint_attention_has_the_text_of_the_models_own_length():
    subject = backbone.find("flux")
    sizes.prepare(subject)
    (layers,) = sizes.measure(subject, 1024).layers
    assert (layers.grid, layers.count) == (Grid(64, 64, 512), 57)


def test_a_folder_says_its_text_and_its_latents(tmp_path):
    subject = backbone.find("data/teachers/flux-nano")
    assert (subject.title, subject.text, subject.factor) == ("flux-nano", 16, 2)
    config = {"_class_name": "DiTTransformer2DModel", **tiny.model().config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert backbone.find(tmp_path).cell == 8


def test_a_hub_id_needs_its_configs_alone(monkeypatch):
    wanted = []

    def download(name, allow_patterns):
        wanted.extend(allow_patterns)
        return "data/teachers/sd-nano"

    monkeypatch.setattr(backbone, "snapshot_download", download)
    subject = backbone.find("someone/model")
    assert (subject.title, subject.text) == ("someone/model", 16)
    assert all(pattern.endswith(".json") for pattern in wanted)


def test_every_known_shape_is_built_without_memory():
    for name in (*SHAPES, "sd35-medium"):
        assert all(weight.is_meta for weight in backbone.find(name).model.parameters())


# Bad input


@pytest.mark.parametrize(
    ("name", "sides", "options", "message"),
    [
        ("fluxx", [512], {}, "unknown model 'fluxx': did you mean 'flux'"),
        ("sd15", [500], {}, "500 px is no multiple of 8, .* 496 and 504 are"),
        ("sd15", [], {}, "no side"),
        ("pixart", [8], {}, "8 px is no multiple of 16, .* 16 and 32 are"),
        ("sd15", [512], {"operators": ["cleer"]}, "unknown operator 'cleer': did you mean 'clear'"),
        ("sd15", [512], {"seconds": 0}, "0 seconds for a point"),
        ("sd15", [512], {"repeats": 0}, "0 repeats"),
        ("sd15", [512], {"text": -1}, "-1 tokens of text"),
        ("linattn/attention", [512], {}, "holds neither model_index.json"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_timed(name, sides, options, message):
    with pytest.raises(ValueError, match=message) as error:
        advise(name, sides, timer=Never(), device="cpu", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device):
    with pytest.raises(ValueError, match=f"nothing runs on device '{device}' here: ") as error:
        advise("sd15", [512], timer=Never(), device=device)
    assert "\n" not in str(error.value)


def test_latents_that_a_model_cannot_take_are_named():
    with pytest.raises(ValueError, match="takes no latents for a side of 512 px: .*pos_embed_max"):
        advise(models.model("sd3"), [256, 512], timer=Never(), device="cpu")


def test_a_hub_that_is_not_reached_is_one_sentence(monkeypatch):
    def unreached(*args, **kwargs):
        raise OSError("offline mode is enabled.\nmore lines")

    monkeypatch.setattr(backbone, "snapshot_download", unreached)
    with pytest.raises(
        ValueError, match="no folder 'someone/model' .*offline mode.* sd15"
    ) as error:
        advise("someone/model", [512], timer=Never())
    assert "\n" not in str(error.value)


def test_a_class_that_is_not_supported_says_why(tmp_path):
    for name, message in (("SanaTransformer2DModel", "linear already"), ("Nothing", "no model of")):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ValueError, match=message):
            advise(tmp_path, [512], timer=Never())


# What is timed


LAYERS = sizes.Layers(LayerShape(32, 2, 16), Grid(8, 8), 1)


def test_tensors_follow_from_the_seed():
    first, second, other = (paths.tensors(LAYERS, "cpu", torch.float32, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("label", ["flash", "math", "clear", "linfusion", "mediator", "lit"])
def test_a_backward_reaches_queries_keys_and_values(label):
    is_softmax = label in paths.BACKENDS
    path = paths.Path(label) if is_softmax else paths.operators([label])[0]
    call = paths.call_of(path, LAYERS, paths.tensors(LAYERS, "cpu", torch.float32, 0), 0)
    for leaf in call.leaves:
        leaf.requires_grad_()
    gradients = torch.autograd.grad(call.run().sum(), call.leaves[:3])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_every_operator_is_timed_and_softmax_is_not_one_of_them():
    operators = {path.operator for path in paths.operators()}
    assert operators == set(OPERATORS) - {"softmax"}


def test_a_call_that_would_take_long_is_not_repeated():
    calls = []
    stopwatch = Stopwatch("cpu", torch.float32, repeats=5, limit=1.0, seed=0)
    run = {"call": lambda: calls.append(1)}
    stopwatch.timed(run, 1e-12, memory=True)
    assert len(calls) == LEAST
    calls.clear()
    stopwatch.timed(run, 60, memory=True)
    assert len(calls) in (5 + UNTIMED - 1, 5 + UNTIMED)  # a fast first call needs no second


def test_a_call_that_fails_gives_its_reason():
    def fail():
        raise torch.OutOfMemoryError("many lines\nof advice")

    stopwatch = Stopwatch("cpu", torch.float32, repeats=1, limit=1.0, seed=0)
    assert stopwatch.timed({"call": fail}, 1.0) == {"call": "out of memory"}


def test_sage_attention_is_said_to_be_missing_or_is_timed(monkeypatch):
    if "sageattention" not in sys.modules:
        reason = paths.absent("sage", [16], "cpu", torch.float32, backward=False)
        assert reason == "SageAttention is not installed"
    fake = types.ModuleType("sageattention")
    fake.__spec__ = types.SimpleNamespace()
    fake.sageattn = lambda q, k, v, tensor_layout, is_causal: q + k + v
    monkeypatch.setitem(sys.modules, "sageattention", fake)
    assert not paths.absent("sage", [16], "cpu", torch.float32, backward=False)
    assert "no backward" in paths.absent("sage", [16], "cpu", torch.float32, backward=True)


@pytest.mark.parametrize("name", models.BACKBONES)
def test_a_model_of_every_family_is_timed_part_by_part(name):
    model = models.model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    side = backbone.find(model).cell * 8
    options = {"operators": ["mediator"], "repeats": 1, "text": 8, "device": "cpu"}
    advice = advise(model, [side], backward=True, **options)
    for mode in (FORWARD, BACKWARD):
        points = {point.path: point for point in advice.at(mode, side)}
        assert set(points) == {"flash", "math", "mediator"}
        assert all(point.seconds > 0 and point.bytes > 0 for point in points.values())
        assert advice.outside_at(mode, side).seconds > 0
    assert set(advice.missing) >= {"cuDNN", "efficient"}
    assert all(layer.operator is None for layer in families.layers(model))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


def test_weights_leave_the_device_after_a_part_was_timed():
    subject = backbone.find(tiny.model())
    sizes.prepare(subject)
    part = sizes.measure(subject, 64).parts[0]
    with parts.running(part, parts.Dice("cpu", 0), backward=False) as run:
        assert run().isfinite().all()
    assert all(weight.is_meta for weight in part.module.parameters())


# The command


def test_the_command_prints_the_table_and_writes_its_files(tmp_path, capsys):
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    typed = ["data/teachers/dit-nano", "--side", "32", "64", "--repeats", "1", "--device", "cpu"]
    assert main([*typed, "--operators", "clear", "lit", *files]) == 0
    shown = capsys.readouterr().out
    advice = Advice.from_json(json.loads((tmp_path / "a.json").read_text()))
    assert shown == "\n".join(table.lines(advice)) + "\n"
    assert "64 px, 256 tokens; outside the attention" in shown
    assert "Not here: cuDNN" in shown
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    wrong = [["fluxx", "--side", "512"], ["sd15", "--side", "500"]]
    wrong.append(["sd15", "--side", "512", "--json", str(tmp_path / "none" / "a.json")])
    wrong.append(["sd15", "--side", "512", "--json", str(tmp_path)])
    for typed in wrong:
        assert main(typed) == 1
        assert capsys.readouterr().err.count("\n") == 1
