"""Wrong arguments are one sentence before anything is computed, and what is not finite stops."""

import math

import numpy as np
import pytest
import tiny
import torch

from linattn import redraw, samples, sampling
from linattn.distillation.config import DistillConfig
from linattn.finite import NotFinite, finite
from linattn.reader import between, checked

LABELS = torch.tensor([1, 2])
BAD = {
    "a number as text": "4",
    "half a picture": 1.5,
    "no number": math.nan,
    "no end": math.inf,
    "less than none": -1,
    "a list": [],
    "a word": "no",
    "thirty zeros": 10**30,
}
GOOD = {  # what an argument may well be
    "guidance": ("half a picture",),
    "seed": ("less than none",),
    "factor": ("half a picture",),
}
NUMBERS = ("steps", "guidance", "size", "seed", "batch")


def cases(names):
    return [
        pytest.param(name, value, id=f"{name}-{word}")
        for name in names
        for word, value in BAD.items()
        if word not in GOOD.get(name, ())
    ]


def refused(call, name):
    with pytest.raises(ValueError, match=rf"{name.rstrip('s')}|side") as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.fixture
def pipe(monkeypatch):
    made = tiny.pipeline()
    monkeypatch.setattr(made.transformer, "forward", lambda *a, **k: pytest.fail("it computed"))
    return made


@pytest.mark.parametrize(("name", "value"), cases((*NUMBERS, "start", "model", "sampler")))
def test_a_draw_refuses(pipe, name, value):
    arguments = {"steps": 2, "guidance": 1.0, "size": 32, name: value}
    refused(lambda: sampling.draw(pipe, LABELS, **arguments), name)


@pytest.mark.parametrize(("name", "value"), cases((*NUMBERS, "count", "shard", "sampler")))
def test_samples_refuse_and_write_nothing(pipe, tmp_path, name, value):
    arguments = {"count": 2, "steps": 2, "guidance": 1.0, "size": 32, name: value}
    folder = tmp_path / "samples"
    refused(lambda: samples.write(pipe, folder, **arguments), name)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), cases(("factor", "strength", "ntk", "steps", "seed", "batch", "tile"))
)
def test_upscale_refuses(pipe, name, value):
    arguments = {"factor": 2, "steps": 2, "guidance": 1.0, name: value}
    image = torch.rand(2, 3, 32, 32)
    refused(lambda: redraw.upscale(pipe, image, prompts=LABELS, **arguments), name)


def test_pictures_that_are_not_finite_are_not_enlarged(pipe):
    image = torch.rand(2, 3, 32, 32)
    image[1, 0, 5, 5] = math.nan
    with pytest.raises(ValueError, match="from nan to nan"):
        redraw.upscale(pipe, image, prompts=LABELS, steps=2)


@pytest.mark.parametrize("name", ["layerwise_steps", "steps", "batch", "warmup", "micro"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_training_settings_refuse(name, value):
    refused(lambda: DistillConfig("softmax", **{name: value}), name)


def test_a_model_that_diverged_draws_no_picture():
    pipe = tiny.pipeline()
    with torch.no_grad():
        pipe.transformer.proj_out_2.bias.fill_(math.nan)
    with pytest.raises(NotFinite, match="latents of a draw are not finite: the model diverged"):
        sampling.draw(pipe, LABELS, steps=1, guidance=1.0)


def test_numpys_and_torchs_whole_numbers_are_numbers():
    @checked(count=between(1))
    def taken(count: int) -> int:
        return count

    assert taken(np.int64(3)) == taken(torch.tensor(3)) == taken(3) == 3
    assert type(taken(np.int64(3))) is int
    for value in (np.float64(3.5), torch.tensor(3.5), torch.tensor([1, 2]), np.bool_(True)):
        with pytest.raises(ValueError, match="it must be a whole number"):
            taken(value)


def test_a_value_of_ten_billion_leaves_is_refused_at_once():
    bomb = ["leaf"] * 10
    for _ in range(9):
        bomb = [bomb] * 10
    with pytest.raises(ValueError, match="steps is .*it must be a whole number") as error:
        DistillConfig("softmax", steps=bomb)
    assert len(str(error.value)) < 2000


def test_finite_values_come_back_and_others_are_counted():
    values = torch.tensor([1.0, math.inf, math.nan])
    assert finite(values[:1], "values", "x") is not None
    assert torch.equal(finite(torch.arange(3), "values", "x"), torch.arange(3))
    with pytest.raises(NotFinite, match="2 of 3 values are not finite: start again"):
        finite(values, "values", "start again")
