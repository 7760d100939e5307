"""A rehearsal of the shortest kind: a published layout, narrow, through every stage."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open

import linattn
from linattn import params, pipeline, project, rehearse, shapes
from linattn.rehearse import folders

NARROW = {  # the classes, parts and files of a published folder at widths that a test can carry
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 64,
    "num_layers": 2,
    "sample_size": 8,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}


@pytest.fixture
def narrow(monkeypatch):
    """Make the rehearsal write a narrow PixArt."""
    pixart = shapes.shape("pixart")
    encoder, config = pixart.encoders["text_encoder"]
    small = dataclasses.replace(
        pixart,
        config={**pixart.config, **NARROW},
        shallow={},
        encoders={"text_encoder": (encoder, {**config, **T5})},
        vae={**pixart.vae, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    )
    monkeypatch.setitem(shapes.SHAPES, "pixart", small)


def test_a_written_folder_is_the_published_layout_and_is_written_once(narrow, tmp_path):
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


def test_at_full_depth_a_model_has_the_published_blocks(narrow, tmp_path):
    narrow_shape = shapes.SHAPES["pixart"]
    shallow = dataclasses.replace(narrow_shape, shallow={"num_layers": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "pixart", shallow)
        for full_depth, blocks in ((False, 1), (True, 2)):
            folder = rehearse.write("pixart", tmp_path / "p", full_depth=full_depth)
            config = json.loads((folder / "transformer" / "config.json").read_text())
            assert config["num_layers"] == blocks


def test_every_rehearsed_teacher_is_a_published_shape_and_has_a_student():
    settings = params.load("rehearse")
    assert set(settings.teachers) == set(folders.PIPELINES) <= set(shapes.SHAPES)
    assert all(settings.of_teacher(role) for role in settings.teachers)
    real = params.load("real")
    assert set(settings.teachers) <= set(real.teachers)


def test_an_unknown_teacher_is_refused_before_anything_is_written(capsys):
    from linattn.rehearse.__main__ import main

    assert main(["--teacher", "sd-15"]) == 1
    assert "did you mean 'sd15'?" in capsys.readouterr().err


def test_a_foreign_folder_goes_through_every_stage_by_params_alone(narrow, tmp_path):
    """A text model that nothing here names, to a report that opens offline."""
    mine = rehearse.write("pixart", tmp_path / "nobody-knows-me")
    copy = tmp_path / "copy"
    pipeline.copy(copy, "rehearse")
    content = YAML(typ="safe").load(copy / "params.yaml")
    (tmp_path / "my.txt").write_text("\n".join(f"a picture of {n} birds" for n in range(6)))
    entry = {"source": str(mine), "side": 64, "prompts": str(tmp_path / "my.txt")}
    content["teachers"] = {"mine": {**entry, "text_length": 16, "evaluate": {"errors": 4}}}
    content["students"] = {"mine-lit": {"operator": "lit", "teacher": "mine"}}
    content["profiles"]["rehearse"] |= {key: content[key] for key in ("teachers", "students")}
    YAML(typ="safe").dump(content, copy / "params.yaml")
    # the copy's notebooks need no cache of this repository's
    shutil.rmtree(copy / ".dvc" / "cache", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": project.python_path(copy), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "linattn.pipeline", "--teacher", "mine"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    row = json.loads((copy / "reports/local/results/mine-lit.json").read_text())
    assert row["quality"].keys() >= {"error", "psnr", "ssim", "eye_distance", "eye_kid"}
    assert not row["quality"].keys() & {"shape", "colour", "kid_world", "kid_teacher"}
    assert row["quality"]["error"]["n"] == 4
    assert set(row["captions"]) == {"a picture of 4 birds"}
    index = (copy / "reports" / "index.html").read_text()
    assert "Eye distance" in index
    assert not re.search(r"judge (finds|knows the)", index)
    assert not re.search(r"""(?:src|href)\s*=\s*["']https?://""", index)
    assert "nobody-knows-me" in index
    assert "A rehearsal: the weights are random" in index
    assert not re.search("Closest to|comes? closest", index)
    student = Path(copy / "reports/local/students/mine-lit")
    pipe = linattn.load(linattn.teachers.load(mine), student)
    assert pipe.model is not None
