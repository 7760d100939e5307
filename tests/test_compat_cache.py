"""diffusers' caches skip in a student what they skip in its teacher, and nothing else."""

import compat
import kinds
import pytest
import torch
from diffusers import hooks

import linattn
from linattn import families

STEPS = 4
CACHED = ("flux", "qwen")  # the families whose models have `enable_cache`
CLOCK = {"time": 999}  # the time that caches by time ask for


def time():
    return CLOCK["time"]


CONFIGS = {
    "first block": lambda: hooks.FirstBlockCacheConfig(threshold=1e9),
    "PAB": lambda: hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=time
    ),
    "FasterCache": lambda: hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=time,
        is_guidance_distilled=True,
    ),
    "MagCache": lambda: hooks.MagCacheConfig(
        mag_ratios=torch.ones(STEPS), num_inference_steps=STEPS, threshold=0.5
    ),
    "TaylorSeer": lambda: hooks.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1
    ),
    "TaylorSeer lite": lambda: hooks.TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, use_lite_mode=True
    ),
}
# those that hook attentions or blocks without asking the pipeline for its step
APPLIED = {
    "PAB": hooks.apply_pyramid_attention_broadcast,
    "FasterCache": hooks.apply_faster_cache,
    "MagCache": hooks.apply_mag_cache,
}


@torch.no_grad()
def steps(kind, model):
    """Draw some steps with ever other latents, and return what each gave."""
    inputs = kinds.inputs(kind)
    name = "sample" if "sample" in inputs else "hidden_states"
    outputs = []
    for step in range(STEPS):
        CLOCK["time"] = 999 if step == 0 else 500
        call = {**inputs, name: inputs[name] * (1 + 0.05 * step)}
        if hasattr(model, "cache_context"):
            with model.cache_context("cond", step_index=step):
                outputs.append(kinds.run(model, **call))
        else:
            outputs.append(kinds.run(model, **call))
    return outputs


class Counter:
    """Count the calls of every layer's projection of queries, and of its operator."""

    def __init__(self, model):
        self.projections, self.operators = {}, {}
        for layer in families.layers(model):
            self.count(layer.attn.to_q, self.projections, layer.name)
            if layer.operator is not None:
                self.count(layer.operator, self.operators, layer.name)

    @staticmethod
    def count(module, counts, name):
        counts[name] = 0

        def add(*args):
            counts[name] += 1

        module.register_forward_hook(add)


def cached(kind, model, enable):
    """Return at which steps a cache changed nothing, and how often the layers computed."""
    plain = steps(kind, model)
    enable(model)
    counter = Counter(model)
    outputs = steps(kind, model)
    same = [torch.equal(out, wanted) for out, wanted in zip(outputs, plain, strict=True)]
    assert all(out.isfinite().all() for out in outputs)
    return same, counter


def skips_alike(kind, operator, enable):
    wanted, of_teacher = cached(kind, kinds.model(kind), enable)
    same, counter = cached(kind, compat.student(kind, operator), enable)
    assert same == wanted
    assert counter.projections == of_teacher.projections
    assert counter.operators == counter.projections
    return of_teacher.projections


@pytest.mark.parametrize("cache", CONFIGS)
@pytest.mark.parametrize("operator", compat.OPERATORS)
@pytest.mark.parametrize("kind", CACHED)
def test_a_cache_skips_in_a_student_what_it_skips_in_its_teacher(kind, operator, cache):
    """TaylorSeer hooked the operator too, which then predicted where its layer computed."""
    calls = skips_alike(kind, operator, lambda model: model.enable_cache(CONFIGS[cache]()))
    assert min(calls.values()) < STEPS, "nothing is skipped"


@pytest.mark.parametrize("cache", APPLIED)
@pytest.mark.parametrize("operator", compat.OPERATORS)
@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in CACHED])
def test_a_cache_that_is_applied_to_other_families_skips_alike(kind, operator, cache):
    skips_alike(kind, operator, lambda model: APPLIED[cache](model, CONFIGS[cache]()))


@pytest.mark.parametrize("cache", CONFIGS)
@pytest.mark.parametrize("operator", compat.OPERATORS)
def test_a_cache_may_be_enabled_before_the_conversion(operator, cache):
    after = compat.student("flux", operator)
    after.enable_cache(CONFIGS[cache]())
    before = kinds.model("flux")
    before.enable_cache(CONFIGS[cache]())
    compat.student("flux", operator, before)
    for out, wanted in zip(steps("flux", before), steps("flux", after), strict=True):
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("cache", CONFIGS)
def test_a_disabled_cache_leaves_the_student_and_then_the_teacher(cache):
    model = compat.student("flux", "mediator")
    wanted = steps("flux", model)
    model.enable_cache(CONFIGS[cache]())
    steps("flux", model)
    model.disable_cache()
    for out, plain in zip(steps("flux", model), wanted, strict=True):
        assert torch.equal(out, plain)
    linattn.restore(model)
    for out, plain in zip(steps("flux", model), steps("flux", kinds.model("flux")), strict=True):
        assert torch.equal(out, plain)


def test_the_first_block_decides_at_threshold_zero_to_compute_all():
    model = compat.student("flux", "clear")
    wanted = steps("flux", model)
    model.enable_cache(hooks.FirstBlockCacheConfig(threshold=0.0))
    for out, plain in zip(steps("flux", model), wanted, strict=True):
        assert torch.equal(out, plain)
