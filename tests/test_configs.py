"""Numbers in a saved pipeline's settings that no model can have are named before it is built."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from linattn import configs, params, parts, project, teachers
from tests.test_teachers import folder  # noqa: F401

TRANSFORMER = "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WRONG = [
    (TRANSFORMER, "num_layers", 10**9),
    (TRANSFORMER, "num_layers", -1),
    (TRANSFORMER, "in_channels", -4),
    (TRANSFORMER, "num_attention_heads", 10**30),
    ("vae/config.json", "block_out_channels", [32, -1]),
    ("vae/config.json", "scaling_factor", None),
    ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "scaling_factor", math.inf),
    (SCHEDULER, "beta_start", math.nan),
    (SCHEDULER, "beta_end", math.inf),
    (SCHEDULER, "trained_betas", [0.1, math.nan]),
]


@pytest.fixture
def copied(folder, tmp_path):  # noqa: F811
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.mark.parametrize(("file", "key", "value"), WRONG, ids=str)
def test_the_file_the_key_and_the_value_are_named(copied, file, key, value):
    path = copied / file
    path.write_text(json.dumps({**project.read_json(path), key: value}))
    said = f"{re.escape(str(path))} has {key}: "
    with pytest.raises(ValueError, match=said):
        teachers.load(copied)
    with pytest.raises(ValueError, match=said):
        parts.check("class", copied, params.described(copied / "model_index.json"))


@pytest.mark.parametrize("number", [0, 2_000])
def test_a_count_may_be_none_and_as_many_as_any_model_has(number):
    configs.check(Path("unet/config.json"), {"layers_per_block": [[1, number], 1]})
    with pytest.raises(ValueError, match="num_layers: 2001, and a count is from 0 to 2,000"):
        configs.check(Path("unet/config.json"), {"num_layers": 2_001})


def test_what_is_no_count_may_be_infinite_or_negative():
    entry = {"lambda_min_clipped": -math.inf, "shift": -1, "num_class_embeds": None}
    configs.check(Path("scheduler/scheduler_config.json"), entry)
    configs.check(Path("unet/config.json"), {"scaling_factor": None})  # not a VAE's


def test_every_committed_teacher_passes():
    paths = [*project.ROOT.glob("data/teachers/*/*/*config.json")]
    assert len(paths) > 6
    for path in paths:
        configs.check(path, project.read_json(path))
