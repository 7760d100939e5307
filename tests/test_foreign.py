"""Pipelines of every supported class that nothing here names, through every stage by params.yaml.

- Their folders are written as their owners would save them: the published classes, parts and files
  at narrow widths, and no card.
- A class takes some 60 s of a core, five notebooks with a kernel each. Of the two that always run
  one reads labels, and one captions of many lengths inside its attention; LINATTN_CLASSES=all runs
  all seven.
- Older or other members of a class are drawn with and trained for two steps without notebooks.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys

import narrow
import pytest
import torch
from diffusers import FluxPipeline, PixArtAlphaPipeline
from ruamel.yaml import YAML

import linattn
from linattn import (
    digests,
    params,
    pipeline,
    project,
    rehearse,
    sampling,
    shapes,
    source,
    teachers,
)
from linattn.distillation import distill
from linattn.distillation.config import DistillConfig

LABELS = ["tench", "goldfish", "great white shark", "tiger shark", "hammerhead"]
PROMPTS = [f"a picture of {count} birds" for count in range(10)]
HELD_OUT = PROMPTS[4::5]
TWO_STEPS = {"evaluate": {"errors": 4, "quick_steps": 2}}  # what Qwen-Image's scheduler takes
# the entry of the student, and what the teacher's entry has beside its folder
CLASSES = {
    "dit": ({"operator": "mediator", "count": 4}, {}),
    "sd15": ({"operator": "linfusion"}, {}),
    "sdxl": ({"operator": "clear", "radius": 2}, {}),
    "pixart": ({"operator": "lit"}, {"text_length": 16}),
    "sd35": ({"operator": "softmax"}, {"text_length": 16}),
    "flux": ({"operator": "clear", "radius": 2}, {"text_length": 16, "side": 64}),
    "qwen": ({"operator": "linfusion"}, {"text_length": 16, "side": 64, **TWO_STEPS}),
}
DEFAULT = ("dit", "qwen")
CHOSEN = tuple(CLASSES) if os.environ.get("LINATTN_CLASSES") == "all" else DEFAULT
each_class = pytest.mark.parametrize("name", CHOSEN)


def written(name, folder):
    """Write a pipeline's folder as its owner would have saved it, and return its path."""
    with narrow.shapes_of(name):
        rehearse.write(name, folder)
    (folder / project.REHEARSAL).unlink()  # which says that the weights are random
    index = project.read_json(folder / "model_index.json")
    if name == "dit":
        index["id2label"] = dict(enumerate(LABELS))
        project.write_json(folder / "model_index.json", index)
    return folder


def entry(name, folder, prompts):
    """Return the teacher's entry in params.yaml."""
    _, more = CLASSES[name]
    texts = {} if name == "dit" else {"prompts": str(prompts)}
    return {"source": str(folder), "evaluate": {"errors": 4}, **texts, **more}


class Finished:
    """The copy of the repository after its one run."""

    def __init__(self, folder):
        self.copy = folder / "copy"
        self.folders = {name: written(name, folder / f"nobody-knows-{name}") for name in CHOSEN}
        (folder / "my.txt").write_text("\n".join(PROMPTS))
        pipeline.copy(self.copy, "rehearse")
        self._choose(folder / "my.txt")
        self.done = self._run()

    def _choose(self, prompts):
        """Write the roles and their students where a user would."""
        path = self.copy / "params.yaml"
        content = YAML(typ="safe").load(path)
        lists = {
            "teachers": {f"my-{name}": entry(name, self.folders[name], prompts) for name in CHOSEN},
            "students": {
                f"{name}-student": {**CLASSES[name][0], "teacher": f"my-{name}"} for name in CHOSEN
            },
        }
        content |= lists
        content["profiles"]["rehearse"] |= lists
        YAML(typ="safe").dump(content, path)

    def _run(self):
        # a cache of its own
        (self.copy / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
        path = project.python_path(self.copy)
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "linattn.pipeline"]
        return subprocess.run(
            command, cwd=self.copy, env=environment, capture_output=True, text=True
        )

    def result(self, name):
        return json.loads((self.copy / "reports/local/results" / f"{name}.json").read_text())

    def page(self, path):
        return (self.copy / "reports" / path).read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("foreign"))


@pytest.mark.slow
def test_one_command_ends_with_the_report(finished):
    done = finished.done
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().splitlines()[-1].startswith("Done. The report:")


@pytest.mark.slow
@each_class
def test_a_row_has_every_measure_but_the_judges(finished, name):
    row = finished.result(f"{name}-student")
    measures = {"error", "psnr", "ssim", "eye_distance", "eye_kid"}
    assert row["quality"].keys() >= measures
    assert not row["quality"].keys() & {"shape", "colour", "relation", "kid_world", "kid_teacher"}
    assert row["quality"]["error"]["n"] == 4  # of params.yaml, for this teacher alone
    assert row["undistilled"]["error"]["value"] is not None
    assert row["cost"]["macs"] > 0
    assert 0 <= row["cost"]["density"] <= 1  # of an operator without softmax, 0


@pytest.mark.slow
@each_class
def test_a_row_is_of_the_teachers_own_prompts(finished, name):
    teacher = finished.result(f"teacher-my-{name}")
    note = json.loads((finished.copy / f"data/sources/my-{name}/evaluate.json").read_text())
    if name == "dit":
        assert set(teacher["classes"]) <= set(LABELS)
        assert "prompts" not in note
        return
    assert set(finished.result(f"{name}-student")["captions"]) == set(HELD_OUT)
    assert note["prompts"] == {"count": len(HELD_OUT), "digest": digests.of_settings(HELD_OUT)}


@pytest.mark.slow
@each_class
def test_a_student_loads_on_its_teachers_folder(finished, name):
    teacher = teachers.load(finished.folders[name])
    student = finished.copy / f"reports/local/students/{name}-student"
    linattn.load(teacher, student)
    operator = CLASSES[name][0]["operator"]
    assert {layer["operator"] for layer in linattn.describe(teacher)} == {operator}


@pytest.mark.slow
@each_class
def test_a_teachers_page_has_its_grid_and_its_columns(finished, name):
    page = finished.page(f"pages/teacher-my-{name}.html")
    words = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for column in ("Error", "PSNR", "Eye distance", "Eye KID", "Attention", "Density"):
        assert re.search(rf">\s*{column}\s*<", page), column
    assert all(prompt in page for prompt in (LABELS[:1] if name == "dit" else HELD_OUT))
    assert "The same pictures by everyone" in words
    assert not re.search("judge (finds|knows the)|drawn by formula", words)
    assert "data:image/" in page or "<svg" in page


@pytest.mark.slow
def test_the_first_page_names_every_teacher(finished):
    index = finished.page("index.html")
    assert all(f"nobody-knows-{name}" in index for name in CHOSEN)


@pytest.mark.slow
def test_the_report_opens_without_a_network(finished):
    pages = [finished.page("index.html"), finished.page("leaderboard.html")]
    pages += [path.read_text() for path in (finished.copy / "reports/pages").glob("*.html")]
    fetched = r"""(?:src|href)\s*=\s*["']https?://"""
    assert not [page[:80] for page in pages if re.search(fetched, page)]


# Members of a class whose folders differ from the one above


def edited(path, **changes):
    """Write other values into a JSON file."""
    project.write_json(path, {**project.read_json(path), **changes})


def pixart_alpha(folder):
    """Its folder names the class that the model had before PixArt had one of its own."""
    old = "Transformer2DModel"
    edited(
        folder / "model_index.json",
        _class_name="PixArtAlphaPipeline",
        transformer=["diffusers", old],
    )
    edited(folder / "transformer/config.json", _class_name=old, norm_type="ada_norm_single")


def schnell(folder):
    edited(folder / "scheduler/scheduler_config.json", use_dynamic_shifting=False, shift=1.0)


def sd21(folder):
    edited(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")


# the class that it is a member of, what its model's config has, and what is edited afterwards
MEMBERS = {
    "PixArt-alpha": ("pixart", {}, pixart_alpha),
    "FLUX.1-schnell": ("flux", {"guidance_embeds": False}, schnell),
    "SD 2.1": ("sd15", {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True}, sd21),
}


class Samples:
    """Latents and prompts as a teacher's samples give them."""

    def __init__(self, latents, prompts):
        self.latents, self.prompts = latents, prompts

    def __len__(self):
        return len(self.prompts)

    def batch(self, indices):
        return self.latents[indices], [self.prompts[index] for index in indices]


def stock(teacher, like):
    """Return the latents that the pipeline itself draws from our noise."""
    pipe, noise = teacher.pipe, sampling.starting_noise(0, range(len(like)), tuple(like.shape[1:]))
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "latent"}
    options["guidance_scale"] = teacher.card["guidance"]
    if isinstance(pipe, PixArtAlphaPipeline):
        options |= {"use_resolution_binning": False, "clean_caption": False}
    if not isinstance(pipe, FluxPipeline):
        return pipe(PROMPTS[:4], latents=noise, **options).images
    packed = pipe._pack_latents(noise, *noise.shape)
    drawn = pipe(PROMPTS[:4], latents=packed, **options).images
    return pipe._unpack_latents(drawn, 64, 64, pipe.vae_scale_factor)


@pytest.mark.parametrize("member", MEMBERS)
def test_other_members_of_a_class_are_drawn_with_and_trained(member, tmp_path):
    name, config, edit = MEMBERS[member]
    with narrow.shapes_of(name), pytest.MonkeyPatch.context() as patch:
        shape = shapes.shape(name)
        changed = dataclasses.replace(shape, config={**shape.config, **config})
        patch.setitem(shapes.SHAPES, name, changed)
        folder = rehearse.write(name, tmp_path / "mine")
    edit(folder)
    assert source.check("mine", params.Teacher(source=str(folder))) == folder
    teacher = teachers.load(folder, card={"side": 64}, dtype=torch.float32)
    latents = sampling.draw_latents(teacher, PROMPTS[:4], steps=4)
    torch.testing.assert_close(latents, stock(teacher, latents))  # measured: the same bits
    settings = DistillConfig("linfusion", layerwise_steps=1, steps=1, batch=2)
    student = tmp_path / "student"
    result = distill.distill(settings, teacher, Samples(latents, PROMPTS[:4]), folder=student)
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    again = linattn.load(teachers.load(folder), student).model
    trained, loaded = result.model.state_dict(), again.state_dict()
    assert all(torch.equal(trained[key], loaded[key]) for key in trained)
