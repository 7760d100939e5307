"""Scores of other papers: measured where their networks are, left out with a reason where not."""

from types import SimpleNamespace

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance

from linattn import params, reader
from linattn.evaluation import scores
from linattn.evaluation.evaluation import _left_out
from linattn.report import circumstances

CAPTIONS = ["a red ring", "a blue star", "a pink disc"]


class Cosine(Metric):
    """Stand for CLIPScore: the mean brightness, plus the length of the caption."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0))
        self.add_state("count", torch.tensor(0))

    def update(self, pictures, captions):
        assert pictures.dtype == torch.uint8
        self.total += pictures.float().mean((1, 2, 3)).sum() + sum(map(len, captions))
        self.count += len(captions)

    def compute(self):
        return self.total / self.count


class Means(torch.nn.Module):
    """Stand for Inception: a picture's channels' means."""

    num_features = 3

    def forward(self, pictures):
        return pictures.float().mean((2, 3))


@pytest.fixture(autouse=True)
def fresh():
    """Metrics are kept for a process, and every test brings its own."""
    scores.metric.cache_clear()
    yield
    scores.metric.cache_clear()


def bench(*names, captioned=True, count=3):
    settings = SimpleNamespace(scores=names, pictures=count, seed=0, batch=2)
    return SimpleNamespace(
        evaluation=settings,
        captioned=captioned,
        prompts=lambda count: CAPTIONS[:count],
        reference={"pictures": pictures(1, count)},
    )


def pictures(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_clip_compares_each_picture_with_its_own_caption(monkeypatch):
    monkeypatch.setitem(scores.METRICS, "clip", Cosine)
    drawn = pictures(2)
    wanted = drawn.float().mean((1, 2, 3)) + torch.tensor([10.0, 11.0, 11.0])
    for measured in (scores.of_student, scores.of_teacher):
        (measure,) = measured(bench("clip"), drawn).values()
        assert measure["value"] == pytest.approx(wanted.mean().item())
        assert measure["low"] < measure["value"] < measure["high"]
        assert measure["n"] == 3


def test_inception_compares_with_the_teachers_pictures(monkeypatch):
    monkeypatch.setitem(scores.METRICS, "inception", lambda: FrechetInceptionDistance(Means()))
    monkeypatch.setattr(scores, "FEATURES", 3)
    asked = bench("inception", count=50)
    same = scores.of_student(asked, pictures(1, 50))["inception_fid"]
    other = scores.of_student(asked, pictures(1, 50) // 2)["inception_fid"]
    assert same["value"] == pytest.approx(0, abs=1e-3)
    assert other["value"] > 100
    assert other["n"] == 50
    assert scores.of_teacher(asked, pictures(1, 50)) == {}
    assert scores.left_out(asked) == {}


def test_what_is_not_here_is_left_out_with_its_reason(monkeypatch):
    """The real metrics, without their weights and without torch-fidelity."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(scores, "FEATURES", 3)
    asked = bench("clip", "inception")
    assert scores.of_student(asked, pictures(2)) == {}
    reasons = _left_out(asked)["left_out"]
    assert reasons["clip"].startswith("it needs the weights of openai/clip-vit-large-patch14, and")
    assert reasons["inception"].startswith("it needs the package torch-fidelity")
    assert reasons["inception"].endswith("ModuleNotFoundError")


def test_a_score_that_would_mean_nothing_is_left_out_before_anything_loads(monkeypatch):
    loaded = []
    for name in scores.METRICS:
        monkeypatch.setitem(scores.METRICS, name, lambda name=name: loaded.append(name))
    reasons = scores.left_out(bench("clip", "inception", captioned=False))
    assert reasons == {
        "clip": "it compares pictures with captions, and this teacher reads labels",
        "inception": "it takes 2,048 pictures or more, and a row has 3",
    }
    assert loaded == []


def test_inception_is_measured_from_2048_pictures_on(monkeypatch):
    monkeypatch.setitem(scores.METRICS, "inception", lambda: FrechetInceptionDistance(Means()))
    assert "a row has 2,047" in scores.left_out(bench("inception", count=2047))["inception"]
    assert scores.left_out(bench("inception", count=2048)) == {}


def test_nothing_is_measured_or_said_unless_it_is_asked(monkeypatch):
    monkeypatch.setitem(scores.METRICS, "clip", Cosine)
    assert scores.of_student(bench(), pictures(2)) == {}
    assert _left_out(bench()) == {}
    assert params.load("nano").evaluate.scores == ()


def test_the_names_are_those_of_params_and_others_are_refused():
    assert set(scores.SCORES) == set(scores.METRICS) == set(scores.KEYS) == set(scores.NEEDS)
    settings = {"pictures": 4, "steps": 1, "quick_pictures": 4, "quick_steps": 1, "cross": 2}
    settings |= {"cross_pictures": 4, "noise": [0.5], "errors": 2, "batch": 1, "seed": 0}
    both = reader.read(params.Evaluate, {**settings, "scores": list(scores.SCORES)}, "evaluate")
    assert both.scores == tuple(scores.SCORES)
    none = reader.read(params.Evaluate, {**vars(both), "scores": []}, "evaluate")
    assert none.scores == ()
    with pytest.raises(ValueError, match="is 'clipp'; it is one of clip, inception"):
        reader.read(params.Evaluate, {**settings, "scores": ["clipp"]}, "evaluate")


def test_the_page_says_a_reason_once():
    reason = {"clip": "it needs weights", "inception": "it takes more pictures"}
    results = {"one": {"left_out": reason}, "two": {"left_out": reason}, "three": {}}
    assert circumstances.left_out(SimpleNamespace(results=results)) == [
        "CLIPScore was left out: it needs weights.",
        "Inception's FID was left out: it takes more pictures.",
    ]
