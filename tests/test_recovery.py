"""What refitting the output projection recovers, of layers whose answer is known."""

import pytest
import tiny
import torch
from test_diagnostics import samples_of

from linattn import families
from linattn.evaluation import recovery


def test_softmax_has_nothing_to_recover():
    table = recovery.recoverable(tiny.pipeline(), *samples_of(4), "softmax")
    assert [row["layer"] for row in table] == [0, 1]
    for row in table:
        assert row["before"] == pytest.approx(0, abs=1e-9)
        assert row["after"] == pytest.approx(0, abs=1e-9)


def test_a_replaced_layer_is_nearer_on_pictures_that_the_fit_has_not_seen():
    pipe = tiny.pipeline()
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    latents, labels = samples_of(16)
    table = recovery.recoverable(pipe, latents, labels % 4, "lit", layers=[1], heads=2)
    assert [row["layer"] for row in table] == [1]
    assert 0 < table[0]["after"] < table[0]["before"]
    state = pipe.transformer.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert not any(layer.operator for layer in families.layers(pipe))


def test_one_picture_cannot_be_fitted_and_measured():
    with pytest.raises(ValueError, match="1 latents and 1 prompts; .* at least 2"):
        recovery.recoverable(tiny.pipeline(), *samples_of(1), "lit")


def test_a_wrong_operator_is_refused_before_the_teacher_runs(monkeypatch):
    monkeypatch.setattr(recovery, "_running", None)
    with pytest.raises(ValueError, match="unknown operator 'lti': did you mean 'lit'"):
        recovery.recoverable(tiny.pipeline(), *samples_of(2), "lti")
