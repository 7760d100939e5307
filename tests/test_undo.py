"""An interruption leaves the model as it was, whenever it comes: base or student, never between."""

import random
import signal
import sys
from pathlib import Path

import diffusers
import pytest
import tiny
import torch

import linattn
from linattn import families
from linattn.surgery.undo import wholly

MOMENTS = 12  # of each of the five changes, 60 in all
TRACED = tuple(str(Path(package.__file__).parent) for package in (diffusers, linattn))


class Interruption:
    """Raise KeyboardInterrupt at this line of those that linattn and diffusers run, or count them.

    Lines of torch are not counted, because they are ten times as many; what is raised there passes
    through the same lines of the library.
    """

    def __init__(self, moment=None):
        self.moment, self.lines = moment, 0

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.moment:
                raise KeyboardInterrupt
        return self

    def run(self, change):
        """Run a change, and say whether it came to its end."""
        torch.manual_seed(0)  # some operators are drawn
        before = sys.gettrace()
        sys.settrace(self)
        try:
            change()
        except KeyboardInterrupt:
            return False
        finally:
            sys.settrace(before)
        return True


def another(folder):
    """Save a student by another operator, which was trained outside its layers too."""
    model = linattn.linearize(tiny.model(), "mediator", count=4)
    with torch.no_grad():
        model.proj_out_2.weight += 1
    linattn.save(model, folder)


def state(model):
    """What a model is: its tensors, operators, processors and hooks, and what `restore` needs."""
    layers = families.layers(model)
    record = vars(model).get("_linattn")
    return {
        "output": tiny.run(model).detach(),
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "operators": [layer.operator and layer.operator.name for layer in layers],
        "processors": [type(layer.attn.processor).__name__ for layer in layers],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "refusals": "save_pretrained" in vars(model),
        "originals": None if record is None else dict(record.originals),
    }


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(equal(one[name], other[name]) for name in one)
        )
    return one == other


CHANGES = {
    "linearize a base": (False, lambda model, _: linattn.linearize(model, "clear", radius=3)),
    "linearize a student": (True, lambda model, _: linattn.linearize(model, "linfusion")),
    "load into a base": (False, lambda model, folder: linattn.load(model, folder)),
    "load into a student": (True, lambda model, folder: linattn.load(model, folder)),
    "restore a student": (True, lambda model, _: linattn.restore(model)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_interruption_at_any_moment_leaves_the_model_whole(name, tmp_path):
    converted, change = CHANGES[name]
    another(tmp_path / "other")

    def fresh():
        return linattn.linearize(tiny.model(), "clear", radius=2) if converted else tiny.model()

    model = fresh()
    old, count = state(model), Interruption()
    assert count.run(lambda: change(model, tmp_path / "other"))
    new = state(model)
    assert not equal(old, new)
    dice = random.Random(18)
    for moment in dice.sample(range(1, count.lines + 1), MOMENTS):
        model = fresh()
        interruption = Interruption(moment)
        interruption.run(lambda model=model: change(model, tmp_path / "other"))
        now = state(model)
        assert equal(now, old) or equal(now, new), f"line {moment} of {count.lines}"


def test_a_second_ctrl_c_does_not_stop_the_undoing():
    """The list of layers is read where the operators are brought back."""
    model = tiny.model()
    old = state(model)

    def change(before):
        linear = model.proj_out_2
        before.keep({"proj_out_2.weight": linear.weight})
        with torch.no_grad():
            linear.weight.zero_()
        before.layers = Pressed(before.layers)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        wholly(model, change)
    assert equal(state(model), old)


class Pressed(list):
    """A list that presses Ctrl-C whenever it is read."""

    def __iter__(self):
        signal.raise_signal(signal.SIGINT)
        return super().__iter__()
