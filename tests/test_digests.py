"""Digests keep their values, because saved students, samples and checkpoints hold them."""

import json

import pytest
import torch
from torch import nn

from linattn import digests, project, samples, surgery, teachers
from linattn.surgery import identity

BITS = "9c85d54b302647aeccb4a9bb3a8f12476e9967ae9ab91be87d3fdf8ebed36f0f"
SHAPE_ALONE = "dc4307c0856536f8d790253fc6f914ad433118405609c52f26d7c2ed9f3ec947"
# of the manifests of samples that these teachers drew
TEACHERS = {
    "dit-nano": {"teacher": "992b235ad50dfca7", "scheduler": "599dfff6ac738362"},
    "sd-nano": {"teacher": "37cedf2c52532400", "readers": ["b506a6fafb281ab9"]},
}


@pytest.fixture
def matrix():
    return torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def layer(matrix):
    layer = nn.Linear(3, 2)
    layer.load_state_dict({"weight": matrix, "bias": torch.zeros(2)})
    return layer


def test_digests_of_tensors_keep_their_values(matrix):
    assert digests.of_tensor(matrix) == BITS
    assert digests.of_tensor(matrix.to("meta")) == SHAPE_ALONE
    assert digests.of_values([matrix, torch.ones(2)]) == "5f69d166b3b96c0a"


def test_digests_of_weights_keep_their_values(layer):
    assert digests.of_weights(layer) == "f9fc743b02e45f30"


def test_digests_of_plain_data_keep_their_values(tmp_path):
    settings = {"a": 1, "b": tmp_path.relative_to(tmp_path) / "x"}
    assert digests.of_settings(settings, length=digests.SCRATCH) == "ce5c626fb403"
    assert digests.of_settings(["a", "b"]) == "3554d2b8a1e34099"
    assert digests.of_text("abc") == "ba7816bf8f01cfea"


def test_a_digest_of_settings_ignores_the_order_of_keys():
    assert digests.of_settings({"a": 1, "b": 2}) == digests.of_settings({"b": 2, "a": 1})


def test_a_digest_of_code_ignores_the_order_of_paths(tmp_path):
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path in paths:
        path.write_text(path.name)
    assert digests.of_code(paths) == digests.of_code(paths[::-1])


def test_a_digest_of_weights_depends_on_values_names_and_types(layer):
    other = nn.ModuleDict({"inner": layer})
    wider = nn.Linear(3, 2).double()
    wider.load_state_dict(layer.state_dict())
    assert len({digests.of_weights(model) for model in (layer, other, wider)}) == 3


@pytest.mark.parametrize("name", TEACHERS)
def test_the_recipe_of_samples_keeps_its_digests(name):
    recipe = samples.describe(teachers.load(project.ROOT / "data" / "teachers" / name), seed=0)
    assert {key: recipe[key] for key in TEACHERS[name]} == TEACHERS[name]


def test_a_committed_student_names_its_file_and_its_base_by_these_digests():
    folder = project.published("students/clear")
    card = json.loads((folder / surgery.CARD).read_text())
    assert digests.of_file(folder / surgery.WEIGHTS) == card["weights"]["sha256"]
    base = identity.base(teachers.load(project.ROOT / "data" / "teachers" / "dit-nano").model)
    assert base["weights"] == card["base"]["weights"]
    assert base["config_digest"] == card["base"]["config_digest"]
