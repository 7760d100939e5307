import pytest
import torch

from linattn import judge, project, world


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
    assert [part.tolist() for part in right] == [[True, True, True], [True, False, True]]


def test_features_are_what_torchmetrics_asks_for(fresh):
    extractor = judge.Features(fresh)
    pictures = torch.rand(3, 3, 64, 64)
    assert extractor.num_features == 128
    torch.testing.assert_close(extractor(pictures), fresh(pictures).features)


def test_a_missing_judge_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m linattn\.judge"):
        judge.load(tmp_path)


def test_spoiling_leaves_a_third_alone_and_is_repeatable():
    pictures = world.render(world.scenes(90, seed=2), 64)
    spoiled = judge.spoil(pictures, torch.Generator().manual_seed(0))
    same = (spoiled == pictures).flatten(1).all(1).float().mean()
    assert 0.15 < same < 0.5
    torch.testing.assert_close(spoiled, judge.spoil(pictures, torch.Generator().manual_seed(0)))


def test_training_goes_on_after_a_kill(tmp_path):
    settings = {"steps": 12, "batch": 4}
    whole = judge.train(tmp_path, **settings).state_dict()
    again = judge.train(tmp_path, **settings).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("side", [64, 128])
def test_the_committed_judge_is_right_on_pictures_it_never_saw(side):
    marks = judge.accuracy(judge.load(project.ROOT / "data" / "judge"), seed=11, count=500, side=side)
    assert marks["shape"] >= 0.99
    assert marks["colour"] >= 0.99
    card = project.read_json(project.ROOT / "data" / "judge" / "card.json")
    assert card[f"held_out_{side}px"]["shape"] >= 0.99


def test_the_committed_judge_does_not_see_what_is_not_there():
    """Grey noise has no class: if the judge were sure of it, its marks would mean little."""
    trained = judge.load(project.ROOT / "data" / "judge")
    pictures = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wrong, _ = trained(pictures).right(torch.arange(64) % 60)
    assert wrong.float().mean() < 0.5
