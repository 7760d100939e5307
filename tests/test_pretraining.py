import dataclasses
import functools
import subprocess
import sys
import textwrap

import pytest
import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler

from linattn import autoencoder, pretraining, project, sampling, teachers, world
from linattn.diffusion import Diffusion

TINY = pretraining.Recipe(
    autoencoder={"steps": 2, "batch": 1},
    stages=(pretraining.Stage(32, 6, 1e-3, 1e-3, batch=4), pretraining.Stage(64, 6, 1e-3, 0.0, batch=2)),
    pictures=8,
    width=32,
    layers=2,
    heads=2,
    warmup=2,
    sampler={"steps": 2, "guidance": 2.0, "side": 64},
    gate={"shape": 0.0, "colour": 0.0, "pictures": 12, "seed": 0},
)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return autoencoder.build().eval()


def test_every_second_position_of_the_later_grid_is_the_earlier_one(vae):
    """What lets the weights of 8 x 8 latents carry over to 16 x 16."""
    embed = pretraining.build(TINY).pos_embed
    zeros = torch.zeros(1, 4, 16, 16)
    fine, coarse = (embed(zeros[..., :side, :side]) - embed.proj.bias for side in (16, 8))
    fine = fine.unflatten(1, (16, 16))[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(fine, coarse, atol=1e-5, rtol=0)


def test_the_fresh_model_predicts_nothing_and_drops_no_label():
    model = pretraining.build(TINY).train()
    inputs = {"timestep": torch.tensor([500]), "class_labels": torch.tensor([3])}
    first, second = (model(torch.ones(1, 4, 16, 16), **inputs).sample for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() < 1e-6


def test_muon_has_the_hidden_matrices_and_adamw_everything_else():
    model = pretraining.build(TINY)
    made = pretraining.optimizers(model)
    muon, adamw = ({id(p) for g in made[name].param_groups for p in g["params"]} for name in ("muon", "adamw"))
    assert not muon & adamw
    assert muon | adamw == {id(p) for p in model.parameters()}
    assert len(muon) == TINY.layers * 6  # q, k, v, out and the two of the feed-forward


def test_the_loss_falls_on_one_batch():
    torch.manual_seed(0)
    model = pretraining.build(TINY)
    diffusion = Diffusion.of(DPMSolverMultistepScheduler(**pretraining.SCHEDULER))
    stepper = torch.optim.AdamW(model.parameters(), lr=1e-2)
    clean, eps = torch.randn(2, 4, 4, 16, 16).unbind()
    labels, t = torch.tensor([0, 5, 1000, 59]), torch.tensor([10, 300, 600, 990])
    losses = []
    for _ in range(40):
        value = pretraining.loss(model, diffusion, clean, labels, eps, t)
        stepper.zero_grad()
        value.backward()
        stepper.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_killed_training_ends_with_the_same_weights(vae, tmp_path):
    """SIGKILL in the middle of the second stage, in a process of its own."""
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import torch
        sys.path.insert(0, "tests")
        from linattn import autoencoder, pretraining
        from test_pretraining import TINY

        rate = pretraining._rate
        def rate_or_death(stage, step, warmup):
            if stage.side == 64 and step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return rate(stage, step, warmup)
        pretraining._rate = rate_or_death
        torch.manual_seed(0)
        pretraining.train(autoencoder.build().eval(), TINY, Path(sys.argv[1]), every=3)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    resumed = pretraining.train(vae, TINY, tmp_path / "killed", every=3)
    whole = pretraining.train(vae, TINY, tmp_path / "whole", every=3)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """Both trainings take no time; what is stored, measured and gated is real."""
    monkeypatch.setattr(project, "scratch", lambda name: tmp_path / "scratch" / name)
    monkeypatch.setattr(autoencoder, "train", lambda *_, **__: autoencoder.build().eval())
    monkeypatch.setattr(autoencoder, "psnr", functools.partial(autoencoder.psnr, count=2))
    monkeypatch.setattr(pretraining, "train", lambda vae, recipe, *_: pretraining.build(recipe).eval())


def test_make_stores_a_stock_pipeline_with_its_card(tmp_path, untrained):
    folder = pretraining.make(tmp_path / "dit-tiny", TINY, device="cpu")
    stock = DiTPipeline.from_pretrained(folder)
    assert stock.labels["red disc"] == 0
    assert len(stock.labels) == 60
    teacher = teachers.load(folder)
    assert (teacher.card["steps"], teacher.card["guidance"], teacher.factor, teacher.classes) == (2, 2.0, 4, 60)
    assert teacher.card["gate"]["shape"]["n"] == 12
    assert sampling.draw(teacher, torch.tensor([0, 59])).shape == (2, 3, 64, 64)
    assert "guidance 2.0" in (folder / "README.md").read_text()
    assert (folder / "grid.png").stat().st_size < 500_000
    assert {oct(path.stat().st_mode)[-3:] for path in folder.rglob("*.safetensors")} == {"644"}


def test_a_teacher_that_fails_its_gate_replaces_nothing(tmp_path, untrained):
    folder = tmp_path / "dit-tiny"
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    strict = dataclasses.replace(TINY, gate={**TINY.gate, "shape": 0.9})
    with pytest.raises(pretraining.FailedGate, match=r"right shape in .*%, the gate asks for 90%"):
        pretraining.make(folder, strict, device="cpu")
    assert [path.name for path in folder.iterdir()] == ["card.json"]


def test_the_world_is_encoded_once_and_in_order(vae, tmp_path):
    latents, labels = pretraining.encoded_world(vae, tmp_path, 32, 5, seed=4)
    stamp = next(tmp_path.iterdir()).stat().st_mtime_ns
    again, _ = pretraining.encoded_world(vae, tmp_path, 32, 5, seed=4)
    assert torch.equal(latents, again)
    assert next(tmp_path.iterdir()).stat().st_mtime_ns == stamp
    assert labels.tolist() == [scene.label for scene in world.scenes(5, seed=4)]
