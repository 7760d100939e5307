"""linattn.upscale: the stock img2img pipelines' latents, every family, its options, and what it
puts back.
"""

import kinds
import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

import linattn
from linattn import families, redraw, sampling, seeds
from linattn.sampling import Plan, Source
from linattn.teachers import Teacher

CAPTIONS = ["a red ring on plain", "a blue star left of a pink disc"]
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def reader(kind: str, **more) -> Teacher:
    return Teacher(
        kinds.pipeline(kind),
        {"steps": 4, "guidance": 2.0, "side": 32, "text_length": 16, **more},
        kind,
    )


def prompts_of(kind: str):
    return torch.tensor([0, 3]) if kind == "dit" else CAPTIONS


def source(kind: str):
    return tiny.pipeline() if kind == "dit" else reader(kind)


STOCK = {"unet": StableDiffusionImg2ImgPipeline, "flux": FluxImg2ImgPipeline}


@pytest.mark.parametrize("strength", [0.25, 0.75, 1.0])
@pytest.mark.parametrize("kind", STOCK)
def test_redraws_what_the_stock_pipeline_redraws(kind, strength, monkeypatch):
    _same_as_stock(reader(kind, guidance=1.0), kind, strength, monkeypatch)


NOISE = {"beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "DDIM": DDIMScheduler(**NOISE, clip_sample=False),
    "PNDM": PNDMScheduler(**NOISE, skip_prk_steps=True),
    "Euler": EulerDiscreteScheduler(**NOISE),
    "Heun": HeunDiscreteScheduler(**NOISE),
}


@pytest.mark.parametrize("strength", [0.25, 0.75])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_redraws_as_the_stock_pipeline_by_its_scheduler(scheduler, strength, monkeypatch):
    made = reader("unet", guidance=1.0)
    made.pipe.scheduler = SCHEDULERS[scheduler]
    _same_as_stock(made, "unet", strength, monkeypatch)


def _same_as_stock(made, kind, strength, monkeypatch):
    stock = STOCK[kind]
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    known = Source.of(made)
    plan = Plan.of(known, 32, 4, 1.0, "card")
    streams = [seeds.of_picture(0, number) for number in range(2)]
    ours = redraw.redrawn(known, plan, CAPTIONS, clean, strength, streams)

    module = stock.__module__
    noise = sampling.starting_noise(0, range(2), (4, 8, 8))
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: noise)
    parts = made.pipe.components.items()
    pipe = stock(
        **{name: module for name, module in parts if name in stock.__init__.__annotations__}
    )
    pipe.set_progress_bar_config(disable=True)
    sizes = {} if kind == "unet" else {"height": 32, "width": 32, "max_sequence_length": 16}
    kwargs = {
        "strength": strength,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "output_type": "latent",
        **sizes,
    }
    with torch.no_grad():
        theirs = pipe(CAPTIONS, image=clean, **kwargs).images
    if kind == "flux":
        theirs = FluxImg2ImgPipeline._unpack_latents(theirs, 32, 32, pipe.vae_scale_factor)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["dit", "unet", "flux"])
@pytest.mark.parametrize("operator", [None, "clear", "linfusion"])
def test_every_family_is_drawn_larger_and_a_student_differs(kind, operator):
    made = source(kind)
    pipe = getattr(made, "pipe", made)
    kwargs = {"prompts": prompts_of(kind), "steps": 4, "guidance": 1.0, "seed": 3}
    plain = linattn.upscale(made, IMAGE, 2, 0.5, **kwargs)
    assert plain.shape == (2, 3, 64, 64)
    if operator:
        linattn.linearize(pipe, operator, **({"radius": 2} if operator == "clear" else {}))
        assert (linattn.upscale(made, IMAGE, 2, 0.5, **kwargs) - plain).abs().max() > 1e-4
        linattn.restore(pipe)
    assert torch.equal(linattn.upscale(made, IMAGE, 2, 0.5, **kwargs), plain)


def test_sides_may_differ_and_a_fraction_is_a_factor():
    drawn = linattn.upscale(reader("unet"), IMAGE[:1, :, :, :24], 1.5, 0.3, prompts=CAPTIONS[:1])
    assert drawn.shape == (1, 3, 48, 36)


def test_a_picture_does_not_depend_on_its_batch():
    made = reader("unet")
    together = linattn.upscale(made, IMAGE, prompts=CAPTIONS, steps=2)
    alone = linattn.upscale(made, IMAGE, prompts=CAPTIONS, steps=2, batch=1)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)


def test_less_strength_stays_closer_to_the_picture():
    made, large = reader("unet"), redraw.enlarged(IMAGE, (64, 64))
    source = Source.of(made)
    clean = sampling.encode(source, large)
    plan = Plan.of(source, 64, 10, 1.0, "card")

    def moved(strength: float) -> float:
        streams = [seeds.of_picture(0, number) for number in range(2)]
        return (
            (redraw.redrawn(source, plan, CAPTIONS, clean, strength, streams) - clean)
            .square()
            .mean()
            .item()
        )

    assert moved(0.1) < moved(0.4) < moved(1.0)


def test_pil_pictures_are_read():
    pixels = (IMAGE.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    images = [Image.fromarray(array) for array in pixels]
    assert np.allclose(redraw.pictures(images).numpy() * 255, pixels.transpose(0, 3, 1, 2))
    assert linattn.upscale(reader("unet"), images[0], prompts=CAPTIONS[:1], steps=1).shape == (
        1,
        3,
        64,
        64,
    )


def test_pil_pictures_of_two_sizes_are_refused():
    images = [Image.new("RGB", size) for size in ((32, 32), (48, 32))]
    with pytest.raises(ValueError, match="pictures of 32 x 32 px and 48 x 32 px in one call"):
        linattn.upscale(reader("unet"), images, prompts=CAPTIONS)
    with pytest.raises(ValueError, match="no pictures"):
        linattn.upscale(reader("unet"), [], prompts=CAPTIONS)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_a_learned_variance_is_refused_and_the_remedy_draws(kind, variance, monkeypatch):
    pipe = tiny.pipeline()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, variance_type=variance)
    monkeypatch.setattr(sampling, "encode", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(
        ValueError,
        match=rf"{kind.__name__} with variance_type '{variance}'.*DDIMScheduler.from_config",
    ):
        linattn.upscale(pipe, IMAGE, prompts=prompts_of("dit"), steps=2)
    monkeypatch.undo()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    assert linattn.upscale(pipe, IMAGE, prompts=prompts_of("dit"), steps=2).isfinite().all()


def test_ntk_turns_the_positions_while_it_draws():
    made = reader("flux")
    rope = made.pipe.transformer.pos_embed
    before = rope.theta
    kwargs = {"prompts": CAPTIONS, "steps": 2, "guidance": 1.0}
    plain, turned = (linattn.upscale(made, IMAGE, 2, 1.0, ntk=ntk, **kwargs) for ntk in (1.0, 10.0))
    assert (plain - turned).abs().max() > 1e-4
    assert rope.theta == before
    with redraw.positions(made.pipe.transformer, 10.0):
        assert rope.theta == 10 * before


def test_proportional_sets_clears_option_meanwhile():
    made = reader("flux")
    linattn.linearize(made.pipe, "clear", radius=2)
    kwargs = {"prompts": CAPTIONS, "steps": 2, "guidance": 1.0}
    plain, scaled = (
        linattn.upscale(made, IMAGE, 2, 1.0, proportional=wanted, **kwargs)
        for wanted in (False, True)
    )
    assert (plain - scaled).abs().max() > 1e-5
    assert all(layer.operator.pinned is None for layer in families.layers(made.pipe))
    linattn.restore(made.pipe)
    length = redraw.trained_tokens(sampling.Source.of(made), CAPTIONS, text=True)
    linattn.linearize(made.pipe, "clear", radius=2, trained=length, proportional=True)
    assert torch.equal(linattn.upscale(made, IMAGE, 2, 1.0, **kwargs), scaled)


def test_the_proportional_scale_is_one_at_the_cards_side():
    made = reader("flux")
    linattn.linearize(made.pipe, "clear", radius=2)
    seen, layer = [], families.layers(made.pipe)[0].operator
    real = layer.scale
    layer.scale = lambda grid, values: seen.append((grid, real(grid, values))) or seen[-1][1]
    kwargs = {"prompts": CAPTIONS, "steps": 1, "guidance": 1.0, "proportional": True}
    linattn.upscale(made, IMAGE, made.card["side"] / IMAGE.shape[-1], 1.0, **kwargs)
    grid, scale = seen[0]
    assert grid.tokens == redraw.trained_tokens(sampling.Source.of(made), CAPTIONS, text=True)
    assert scale == layer.shape.head_dim**-0.5


def test_large_pictures_are_decoded_in_tiles_and_small_ones_are_not():
    made = reader("unet")
    sizes = []
    decode = made.vae.decoder.forward
    made.vae.decoder.forward = lambda latents, *more: (
        sizes.append(latents.shape[-1]) or decode(latents, *more)
    )
    linattn.upscale(made, IMAGE[:1], 2, 0.3, prompts=CAPTIONS[:1], tile=32)
    assert max(sizes) == 8
    assert len(sizes) > 1
    assert made.vae.use_tiling is False
    sizes.clear()
    linattn.upscale(made, IMAGE[:1], 2, 0.3, prompts=CAPTIONS[:1], tile=64)
    assert sizes == [16]


WRONG = {
    "a flat picture": ({"image": IMAGE[0]}, "pictures are"),
    "smaller": ({"factor": 0.5}, "factor of 0.5"),
    "no strength": ({"strength": 0}, "strength of 0"),
    "too much": ({"strength": 1.2}, "strength of 1.2"),
    "one caption": ({"prompts": CAPTIONS[:1]}, "2 pictures and 1"),
    "no rope": ({"ntk": 10}, "rotates no positions"),
    "a schedule": ({"proportional": True}, "follow a schedule"),
    "no clear": ({"proportional": True}, "layers of clear"),
    "a size that is none": ({"factor": 1.03}, "33 px is no multiple of 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_anything_is_drawn(name, monkeypatch):
    changes, message = WRONG[name]
    monkeypatch.setattr(sampling, "stepped", lambda *_: pytest.fail("something was drawn"))
    kwargs, made = {"image": IMAGE, "prompts": CAPTIONS, **changes}, reader("unet")
    if name == "a schedule":
        linattn.linearize(made.pipe, "clear", radius=2, schedule=[{"until": 0.5, "radius": 4}])
    with pytest.raises(ValueError, match=message):
        linattn.upscale(made, kwargs.pop("image"), **kwargs)


@pytest.mark.parametrize("image", [None, "x", 5, [None], ["a"], [IMAGE], IMAGE.numpy()])
def test_what_is_no_picture_is_named(image):
    with pytest.raises(ValueError, match="pictures are .*; pass a tensor"):
        redraw.upscale(tiny.pipeline(), image, prompts=[0, 1])


def test_a_tile_below_the_vaes_step_and_a_factor_beyond_all_memory_are_named():
    with pytest.raises(ValueError, match="a tile of 1 px; the VAE's latents need 8 or more"):
        redraw.upscale(tiny.pipeline(), IMAGE, prompts=[0, 1], steps=2, tile=1)
    with pytest.raises(ValueError, match="a factor of 1000000000.0; .* 64 is the most"):
        redraw.upscale(tiny.pipeline(), IMAGE, 1e9, prompts=[0, 1])
