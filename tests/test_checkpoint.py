import errno
import os

import pytest
import torch

from linattn import checkpoint


class Counter:
    """Remember which steps it has seen, as its state."""

    def __init__(self):
        self.seen = []

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def test_a_nested_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "a": torch.arange(3),
        "b": {"c": [1, 2.5, None, True, "x"], 4: (torch.zeros(0), "y")},
        "empty": {},
    }
    checkpoint.save(tmp_path / "deep" / "state.safetensors", tree)
    back = checkpoint.load(tmp_path / "deep" / "state.safetensors")
    assert torch.equal(back["a"], tree["a"])
    assert back["b"]["c"] == tree["b"]["c"]
    assert back["b"][4][0].shape == (0,)
    assert isinstance(back["b"][4], tuple)
    assert back["empty"] == {}


def test_tensors_that_share_memory_and_views_are_kept_apart(tmp_path):
    base = torch.arange(6.0)
    checkpoint.save(tmp_path / "s", {"a": base, "b": base[::2], "c": base.view(2, 3).T})
    back = checkpoint.load(tmp_path / "s")
    assert torch.equal(back["b"], base[::2])
    assert torch.equal(back["c"], base.view(2, 3).T)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Muon"])
def test_a_restored_optimizer_goes_on_as_an_undisturbed_one(tmp_path, optimizer):
    def run(steps, state=None):
        weight = torch.nn.Parameter(torch.ones(4, 4) if state is None else state["weight"])
        momentum = {} if optimizer == "AdamW" else {"momentum": 0.9}
        stepper = getattr(torch.optim, optimizer)([weight], lr=0.1, **momentum)
        if state is not None:
            stepper.load_state_dict(state["stepper"])
        for _ in range(steps):
            weight.grad = weight.detach() * torch.arange(16.0).view(4, 4)
            stepper.step()
        return {"weight": weight.detach(), "stepper": stepper.state_dict()}

    checkpoint.save(tmp_path / "s", run(3))
    resumed = run(2, checkpoint.load(tmp_path / "s"))
    assert torch.equal(resumed["weight"], run(5)["weight"])


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.zeros(100)})
    content = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    else:
        damaged = {"truncated": content[:-7], "garbage": b"\x80pickle" * 9, "empty": b""}
        path.write_bytes(damaged[damage])
    message = r"state\.safetensors is damaged .* delete it"
    with pytest.raises(checkpoint.CorruptCheckpoint, match=message):
        checkpoint.load(path)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"step": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="could not be written .*No space left"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("killed_after", [1, 3, 4, 7, 10])
def test_a_killed_loop_goes_on_from_its_last_checkpoint(tmp_path, killed_after):
    path = tmp_path / "loop"
    first = Counter()
    for step in checkpoint.Resumable(path, {"counter": first}, 10, {"a": 1}, every=3):
        if step == killed_after:
            break
        first.seen.append(step)
    second = Counter()
    for step in checkpoint.Resumable(path, {"counter": second}, 10, {"a": 1}, every=3):
        second.seen.append(step)
    assert second.seen == list(range(10))


def test_a_finished_loop_has_no_step_left(tmp_path):
    for _ in range(2):
        counter = Counter()
        steps = list(checkpoint.Resumable(tmp_path / "loop", {"counter": counter}, 3, {}))
    assert steps == []


def test_another_recipe_is_refused(tmp_path):
    list(checkpoint.Resumable(tmp_path / "loop", {}, 2, {"rate": 1e-3}))
    with pytest.raises(ValueError, match="another recipe: .*0.001.* now .*0.002.*delete it"):
        checkpoint.Resumable(tmp_path / "loop", {}, 2, {"rate": 2e-3})
