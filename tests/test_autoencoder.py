import copy

import pytest
import torch

from linattn import world
from linattn.pretraining import autoencoder


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return autoencoder.build().eval()


def test_factor_four_gives_a_quarter_of_the_side(vae):
    latents = vae.encode(torch.zeros(1, 3, 40, 24)).latent_dist.mean
    assert latents.shape == (1, 4, 10, 6)
    assert vae.decode(latents).sample.shape == (1, 3, 40, 24)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_diffusers_reads_the_factor_from_the_config(factor):
    config = autoencoder.build(factor, latent_channels=3).config
    assert 2 ** (len(config.block_out_channels) - 1) == factor
    assert config.latent_channels == 3


@torch.no_grad()
def test_folding_standardises_the_latents_and_changes_no_picture(vae):
    folded = copy.deepcopy(vae)
    autoencoder.fold(folded, seed=3, count=32)
    picture = autoencoder.pictures(world.scenes(32, seed=3), 64)
    before, after = vae.encode(picture).latent_dist, folded.encode(picture).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    std = before.mean.std((0, 2, 3))[:, None, None]
    torch.testing.assert_close(after.std * std, before.std, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        folded.decode(after.mean).sample, vae.decode(before.mean).sample, atol=1e-4, rtol=0
    )


def test_training_lowers_the_error_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "fold", lambda vae, seed: None)
    settings = {"steps": 12, "batch": 2, "seed": 1}
    trained = autoencoder.train(tmp_path, **settings)
    again = autoencoder.train(tmp_path, **settings)  # no step is left
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    torch.manual_seed(1)
    untrained = autoencoder.build()
    before, after = (autoencoder.psnr(vae, side=32, count=8) for vae in (untrained, trained))
    assert after > before


def test_pictures_are_between_minus_one_and_one():
    picture = autoencoder.pictures(world.scenes(4, seed=3), 32)
    expected = world.render(world.scenes(4, seed=3), 32)
    torch.testing.assert_close((picture + 1) / 2, expected)
    assert picture.shape == (4, 3, 32, 32)
    assert -1 <= picture.min() < -0.5
    assert 0.5 < picture.max() <= 1
