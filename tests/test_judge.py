import dataclasses
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from linattn import project, world
from linattn.world import judge
from linattn.world.judge import spoil


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return judge.Judge().eval()


@pytest.mark.parametrize("side", [16, 64, 65, 128])
def test_any_side_gives_marks(fresh, side):
    marks = fresh(torch.rand(2, 3, side, side))
    assert marks.shape.shape == (2, len(world.SHAPES))
    assert marks.colour.shape == (2, len(world.COLOURS))
    assert marks.features.shape == (2, fresh.num_features)


def test_right_compares_with_the_class_of_each_picture():
    shape, colour = torch.eye(10)[[0, 0, 9]], torch.eye(6)[[0, 5, 5]]
    right = judge.Marks(shape, colour, torch.zeros(3, 128)).right(torch.tensor([0, 1, 59]))
    assert [marks.tolist() for marks in right] == [[True, True, True], [True, False, True]]


def test_a_missing_judge_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m linattn\.world\.judge"):
        judge.load(tmp_path)


def test_spoiling_leaves_a_third_alone_and_is_repeatable():
    pictures = world.render(world.scenes(90, seed=2), 64)
    spoiled = judge.spoil(pictures, torch.Generator().manual_seed(0))
    same = (spoiled == pictures).flatten(1).all(1).float().mean()
    assert 0.15 < same < 0.5
    torch.testing.assert_close(spoiled, judge.spoil(pictures, torch.Generator().manual_seed(0)))


TRAINING = {"steps": 8, "batch": 4}


def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """SIGKILL in the sixth of eight steps, in a process of its own; the last checkpoint was after
    the third.
    """
    script = textwrap.dedent("""
        import functools, os, signal, sys
        from pathlib import Path
        import torch
        from linattn.world import judge

        spoil, taken = judge.spoil, []
        def spoil_or_death(pictures, draw):
            taken.append(draw)
            if len(taken) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return spoil(pictures, draw)
        judge.spoil = spoil_or_death
        judge.Resumable = functools.partial(judge.Resumable, every=3)
        torch.set_num_threads(1)  # as here, and with the same algorithms: gradients depend on both
        torch.use_deterministic_algorithms(True, warn_only=True)
        judge.train(Path(sys.argv[1]), steps=int(sys.argv[2]), batch=int(sys.argv[3]))
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), *map(str, TRAINING.values())]
    done = subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    undisturbed = judge.train(tmp_path / "whole", **TRAINING).state_dict()
    taken = []
    monkeypatch.setattr(
        judge, "spoil", lambda pictures, draw: taken.append(draw) or spoil(pictures, draw)
    )
    resumed = judge.train(tmp_path / "killed", **TRAINING).state_dict()
    assert len(taken) == 5  # what the checkpoint holds is not trained again
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.mark.parametrize("side", [64, 128])
def test_the_committed_judge_is_right_on_pictures_it_never_saw(side):
    marks = judge.accuracy(
        judge.load(project.ROOT / "data" / "judge"), seed=11, count=500, side=side
    )
    assert 0.99 <= marks["shape"] <= 1
    assert 0.99 <= marks["colour"] <= 1
    assert (marks["n"], marks["seed"]) == (500, 11)
    card = project.read_json(project.ROOT / "data" / "judge" / "card.json")
    assert card[f"held_out_{side}px"]["shape"] >= 0.99


@pytest.mark.parametrize("side", [64, 128])
def test_the_committed_judge_marks_the_thing_and_not_what_is_around_it(side):
    """It has no answer for an empty picture and guesses; what it marks right on a full one, it saw
    in the thing.
    """
    trained = judge.load(project.ROOT / "data" / "judge")
    full = world.scenes(250, seed=11, start=world.HELD_OUT)
    empty = [dataclasses.replace(scene, things=()) for scene in full]
    labels = torch.tensor([scene.label for scene in full])
    seen, guessed = (trained(world.render(scenes, side)).right(labels) for scenes in (full, empty))
    for right, guesses, chance in zip(
        seen, guessed, (1 / len(world.SHAPES), 1 / len(world.COLOURS)), strict=True
    ):
        assert right.float().mean() >= 0.99
        # Four deviations above chance.
        assert guesses.float().mean() <= chance + 4 * (chance * (1 - chance) / len(full)) ** 0.5


def test_torchmetrics_distances_take_the_judges_features(fresh):
    """Bytes and floats are the same pictures to it."""
    dice = torch.Generator().manual_seed(0)
    real, other = (torch.randint(0, 256, (40, 3, 64, 64), generator=dice) for _ in range(2))
    real, other = real.to(torch.uint8), (other // 2).to(torch.uint8)
    extractor = judge.Features(fresh).requires_grad_(False)
    frechet = FrechetInceptionDistance(feature=extractor, input_img_size=(3, 64, 64))
    kernel = KernelInceptionDistance(feature=extractor, subset_size=20, subsets=4)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(other.float() / 255, real=False)
    assert frechet.compute() > 0
    assert kernel.compute()[0] > 0
    marked = [fresh(pictures.float() / 255).features.double() for pictures in (real, other)]
    torch.testing.assert_close(frechet.real_features_sum, marked[0].sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(frechet.fake_features_sum, marked[1].sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "pictures",
    [
        torch.full((1, 3, 8, 8), 255.0),
        torch.full((1, 3, 8, 8), float("nan")),
        torch.ones(1, 3, 8, 8, dtype=torch.int64),
        torch.ones(3, 8, 8),
        torch.ones(0, 3, 8, 8),
        torch.ones(1, 1, 8, 8),
    ],
)
def test_what_is_no_picture_has_no_features(fresh, pictures):
    with pytest.raises(ValueError, match=r"pictures are .*pass (uint8|\(batch, 3)"):
        judge.Features(fresh)(pictures)


def test_a_larger_picture_is_averaged_and_not_thinned_out(fresh):
    """Every second pixel alone would make a fine pattern a coarse one."""
    large = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(large, (64, 64), mode="bilinear", antialias=True)
    thinned = F.interpolate(large, (64, 64), mode="bilinear")
    torch.testing.assert_close(fresh(large).features, fresh(small).features)
    assert (fresh(large).features - fresh(thinned).features).abs().max() > 1e-4


def test_accuracy_takes_every_picture_once(monkeypatch):
    """More than one batch: a scene that is asked twice would count twice."""
    numbers = []

    class Right(judge.Judge):
        def forward(self, pictures):
            return self

        def right(self, labels):
            return torch.ones(len(labels)), torch.zeros(len(labels))

    scenes = world.drawing.scenes

    def noted(count, seed, start=0):
        numbers.extend(range(start, start + count))
        return scenes(count, seed, start=start)

    monkeypatch.setattr(judge.drawing, "scenes", noted)
    marks = judge.accuracy(Right(), seed=1, count=260, side=16)
    assert marks == {"shape": 1.0, "colour": 0.0, "n": 260, "seed": 1}
    assert numbers == list(range(world.HELD_OUT, world.HELD_OUT + 260))
