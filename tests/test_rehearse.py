"""A rehearsal writes published layouts with random weights; test_foreign.py runs such folders."""

import dataclasses
import json

import narrow
import pytest
import torch
from safetensors import safe_open

from linattn import params, rehearse, shapes, teachers
from linattn.rehearse import pipelines


@pytest.fixture
def narrow_pixart():
    with narrow.shapes_of("pixart"):
        yield


def test_a_written_folder_is_the_published_layout_and_is_written_once(narrow_pixart, tmp_path):
    folder = rehearse.write("pixart", tmp_path / "pixart")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "PixArtSigmaPipeline"
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"]
    with safe_open(next((folder / "transformer").glob("*.safetensors")), "pt") as file:
        assert file.get_tensor(file.keys()[0]).dtype == torch.bfloat16
    before = (folder / "model_index.json").stat().st_mtime_ns
    rehearse.write("pixart", folder)
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    rehearse.write("pixart", folder, seed=1)
    assert (folder / "model_index.json").stat().st_mtime_ns > before


def test_at_full_depth_a_model_has_the_published_blocks(narrow_pixart, tmp_path):
    shallow = dataclasses.replace(narrow.shape("pixart"), shallow={"num_layers": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "pixart", shallow)
        for full_depth, blocks in ((False, 1), (True, 2)):
            folder = rehearse.write("pixart", tmp_path / "p", full_depth=full_depth)
            config = json.loads((folder / "transformer" / "config.json").read_text())
            assert config["num_layers"] == blocks


PARTS = {  # of a published folder, beside scheduler and autoencoder
    "dit": {"transformer": "DiTTransformer2DModel"},
    "sdxl": {
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    },
    "qwen": {
        "transformer": "QwenImageTransformer2DModel",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2Tokenizer",
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_a_written_folder_has_the_published_parts(name, tmp_path):
    with narrow.shapes_of(name):
        folder = rehearse.write(name, tmp_path / name)
    index = json.loads((folder / "model_index.json").read_text())
    assert {part: index[part][1] for part in PARTS[name]} == PARTS[name]
    assert type(teachers.load(folder).model).__name__ in PARTS[name].values()


def test_a_prompt_stands_right_behind_qwens_template_and_letters_differ(tmp_path):
    with narrow.shapes_of("qwen"):
        conditions = teachers.load(rehearse.write("qwen", tmp_path / "q")).conditions
    states = conditions.encode(["ab", "ac"])["encoder_hidden_states"]
    ending = conditions.encode([""])["encoder_hidden_states"].shape[1]
    assert states.shape[1] == ending + 2
    assert torch.equal(states[0, 0], states[1, 0])
    assert not torch.equal(states[0, 1], states[1, 1])


def test_every_rehearsed_teacher_is_a_published_shape_and_has_a_student():
    settings = params.load("rehearse")
    assert set(settings.teachers) <= set(pipelines.PIPELINES) <= set(shapes.SHAPES)
    assert all(settings.of_teacher(role) for role in settings.teachers)
    real = params.load("real")
    assert set(settings.teachers) <= set(real.teachers)


def test_an_unknown_teacher_is_refused_before_anything_is_written(capsys):
    from linattn.rehearse.__main__ import main

    assert main(["--teacher", "sd-15"]) == 1
    assert "did you mean 'sd15'?" in capsys.readouterr().err
