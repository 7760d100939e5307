import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from linattn import world

ONE_OF_EACH = [world.scene(1, index, label=index) for index in range(len(world.LABELS))]


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("side", [16, 64])
def test_one_description_has_one_look_at_every_resolution(side, objects):
    scenes = ONE_OF_EACH if objects == 1 else world.scenes(60, seed=3, objects=2)
    fine = (
        world.render(scenes, 4 * side).unflatten(3, (side, 4)).unflatten(2, (side, 4)).mean((3, 5))
    )
    difference = (fine - world.render(scenes, side)).abs().mean((1, 2, 3))
    # Edges differ by the anti-aliasing of one pixel: their share of the picture halves with every
    # doubling.
    assert difference.max() < 0.003 * 64 / side
    assert difference.max() > 0  # it compares two renderings, not one with itself


def test_sides_are_those_between_16_and_4096():
    assert world.render(ONE_OF_EACH[:1], 16).shape == (1, 3, 16, 16)
    for side in (15, 4097, 0, -64):
        with pytest.raises(ValueError, match="at least 16 and at most 4096"):
            world.render(ONE_OF_EACH[:1], side)


def test_4096_px_can_be_drawn():
    picture = world.render(ONE_OF_EACH[:1], 4096)
    assert picture.shape == (1, 3, 4096, 4096)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_no_scene_gives_an_empty_batch():
    assert world.render([], 64).shape == (0, 3, 64, 64)


def test_a_picture_does_not_depend_on_its_batch():
    together = world.render(ONE_OF_EACH, 32)
    alone = torch.cat([world.render([scene], 32) for scene in ONE_OF_EACH])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "label", range(0, 60, 7), ids=lambda label: world.LABELS[label].replace(" ", "-")
)
def test_the_centre_of_mass_of_the_colour_is_where_the_thing_is(label):
    scene = world.scene(5, label, label=label)
    thing = dataclasses.replace(scene.things[0], rotation=0.0)
    scene = world.Scene((thing,), dataclasses.replace(scene.background, kind="plain"))
    empty = dataclasses.replace(thing, size=1e-6)
    inked = (
        (world.render([scene], 64) - world.render([world.Scene((empty,), scene.background)], 64))
        .abs()
        .sum(1)[0]
    )
    ticks = (torch.arange(64) + 0.5) / 64
    x, y = (inked.sum(0) * ticks).sum() / inked.sum(), (inked.sum(1) * ticks).sum() / inked.sum()
    assert math.hypot(x - thing.x, y - thing.y) < 0.5 * thing.size


def test_shapes_differ_from_one_another_and_from_nothing():
    thing = world.Thing("disc", "red", 0.3, 0.5, 0.5, 0.0)
    plain = world.Background("plain", "white", 0.3)
    scenes = [
        world.Scene((dataclasses.replace(thing, shape=shape),), plain) for shape in world.SHAPES
    ]
    covers = (world.render(scenes, 64)[:, 1] < 0.5).float().flatten(1)  # (shapes, pixels)
    assert covers.mean(1).min() > 0.05
    union, overlap = (covers[:, None] + covers[None]).clamp(max=1).sum(-1), covers @ covers.T
    similarity = overlap / union - torch.eye(len(scenes))
    assert similarity.max() < 0.85


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(1, 2))
def test_things_lie_inside_the_picture_and_the_relation_is_true(seed, index, objects):
    scene = world.scene(seed, index, objects)
    for thing in scene.things:
        assert thing.size - 1e-9 <= thing.x <= 1 - thing.size + 1e-9
        assert thing.size - 1e-9 <= thing.y <= 1 - thing.size + 1e-9
    if objects == 2:
        first, second = scene.things
        assert math.hypot(first.x - second.x, first.y - second.y) >= first.size + second.size - 1e-9
        holds = {
            "left of": first.x < second.x,
            "right of": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }
        assert holds[scene.relation]


def test_a_scene_depends_on_seed_and_index_alone():
    assert world.scenes(9, seed=4)[5:] == world.scenes(4, seed=4, start=5)
    assert world.scene(4, 0) != world.scene(5, 0)
    assert world.scene(0, 1) != world.scene(1, 0)


def test_captions_follow_the_grammar():
    ring = world.Thing("ring", "red", 0.25, 0.25, 0.5, 0.0)
    star = world.Thing("star", "blue", 0.15, 0.75, 0.5, 0.0)
    scene = world.Scene((ring, star), world.Background("stripes", "sand", 0.3))
    assert scene.caption == "a red ring left of a small blue star on sand stripes"
    assert (
        world.Scene((star,), world.Background("plain", "black", 0.3)).caption
        == "a small blue star on black"
    )


def test_labels_are_shape_times_colour():
    assert len(world.LABELS) == len(set(world.LABELS)) == 60
    for label in range(60):
        shape, colour = world.label_parts(label)
        scene = world.scene(0, 0, label=label)
        assert scene.label == label
        assert (scene.things[0].shape, scene.things[0].colour) == (
            list(world.SHAPES)[shape],
            list(world.COLOURS)[colour],
        )


@pytest.mark.parametrize("label", [-1, 60])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(ValueError, match="60 classes"):
        world.label_parts(label)


def test_three_objects_are_refused():
    with pytest.raises(ValueError, match="1 or 2 objects, not 3"):
        world.scene(0, 0, objects=3)
