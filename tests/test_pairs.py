import pytest
import torch

from linattn import project, world
from linattn.world import judge, pairs


@pytest.fixture(scope="module")
def ours():
    return judge.load(project.ROOT / "data" / "judge")


@pytest.fixture(scope="module")
def scenes():
    return world.scenes(100, seed=3, objects=2, start=world.HELD_OUT)


@pytest.mark.parametrize("side", [64, 96])
def test_true_pictures_are_marked_right(ours, scenes, side):
    right = pairs.marks(ours, world.render(scenes, side), scenes).float().mean(0)
    assert (right >= 0.97).all()


def test_captions_of_other_pictures_are_marked_wrong(ours, scenes):
    other = scenes[1:] + scenes[:1]
    shapes, colours, relation = pairs.marks(ours, world.render(scenes, 64), other).float().mean(0)
    assert shapes < 0.1
    assert colours < 0.15
    assert relation < 0.45  # one of four, and whichever where nothing tells which is which


def test_shares_of_true_pictures_beat_chance_by_far(ours, scenes):
    pictures = world.render(scenes, 64)
    shares, chance = (measure(ours, pictures, scenes) for measure in (pairs.shares, pairs.chance))
    assert shares.keys() == chance.keys() == set(pairs.NAMES)
    for name in pairs.NAMES:
        assert shares[name]["n"] == len(scenes)
        assert shares[name]["low"] > chance[name] + 0.4


def test_chance_is_the_mean_over_all_other_captions_where_they_are_few(ours, scenes):
    few = scenes[:3]
    pictures = world.render(few, 64)
    luck = [pairs.shares(ours, pictures, few[by:] + few[:by]) for by in (1, 2)]
    expected = {name: sum(shares[name]["value"] for shares in luck) / 2 for name in pairs.NAMES}
    assert pairs.chance(ours, pictures, few) == pytest.approx(expected)


def test_chance_needs_another_caption(ours, scenes):
    with pytest.raises(ValueError, match="1 pictures of two things.*2 or more"):
        pairs.chance(ours, world.render(scenes[:1], 64), scenes[:1])


def test_things_are_found_where_they_are(scenes):
    for scene, picture in zip(scenes[:20], world.render(scenes[:20], 64), strict=True):
        centres, true = (
            torch.tensor([(thing.x, thing.y) for thing in places])
            for places in (pairs.patches(picture), scene.things)
        )
        assert torch.cdist(centres, true).amin(0).max() < 0.1


def test_swapped_things_have_the_wrong_relation_alone(ours, scenes):
    def mirrored(scene):
        first, second = scene.things
        return world.Scene((second, first), scene.background)

    apart = [
        s
        for s in scenes
        if len({t.shape for t in s.things}) == len({t.colour for t in s.things}) == 2
    ]
    flipped = world.render(apart, 64).flip(3).flip(2)  # every relation becomes its opposite
    right = pairs.marks(ours, flipped, apart).float().mean(0)
    assert right[2] < 0.1  # an arrow upside down may be read as another shape
    assert (
        pairs.marks(ours, world.render([mirrored(s) for s in apart], 64), apart).float().mean(0)[2]
        > 0.97
    )


@pytest.mark.parametrize("things", [0, 1])
def test_a_picture_without_two_things_is_wrong_in_all(ours, scenes, things):
    picture = torch.full((1, 3, 64, 64), 0.5)
    if things:
        picture = world.render(world.scenes(1, seed=0), 64)
    assert not pairs.marks(ours, picture, scenes[:1]).any()
    assert len(pairs.patches(picture[0])) == things


def test_no_pictures_have_no_marks(ours):
    assert pairs.marks(ours, torch.empty(0, 3, 64, 64), []).shape == (0, 3)
