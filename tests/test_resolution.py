"""The study of sizes measures edges and costs, and writes its sections."""

import dataclasses
import re

import pytest
import tiny
import torch

from linattn import project, redraw, world
from linattn.studies import resolution


class Bench:
    """Stand in for the bench, as far as `growing` uses it."""

    teacher = tiny.pipeline()

    @staticmethod
    def prompts(count):
        return torch.zeros(count, dtype=torch.long)


Bench.teacher.conditions = resolution.sampling.Source.of(Bench.teacher).conditions


def test_the_studys_settings_are_read_strictly(tmp_path):
    assert set(resolution.load().teachers) == {"class", "text", "text-joint"}
    text = (project.ROOT / resolution.PARAMS).read_text()
    for before, after, message in (
        ("pictures:", "picturs:", "did you mean 'pictures'"),
        ("pictures: 16", "pictures: many", "pictures is 'many' .* it must be a whole number"),
    ):
        (tmp_path / "params.yaml").write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=message):
            resolution.load(tmp_path / "params.yaml")


def test_true_pictures_have_steeper_edges_than_enlarged_ones():
    scenes = world.scenes(8, seed=3)
    small, large = world.render(scenes, 64), world.render(scenes, 256)
    soft = redraw.enlarged(small, (256, 256))
    assert (resolution.edges(soft) < 0.8 * resolution.edges(large)).all()
    assert (resolution.edges(torch.zeros(2, 3, 16, 16)) == 0).all()


def test_a_forward_grows_until_the_limit(capsys):
    settings = dataclasses.replace(resolution.load(), sides=(16, 32, 64), limit=1e12)
    model = Bench.teacher.transformer
    forwards = resolution.growing(Bench, settings, model)
    assert [forward["tokens"] for forward in forwards] == [16, 64, 256]
    assert all(forward["seconds"] > 0 for forward in forwards)
    for key in ("bytes", "macs"):
        assert forwards[0][key] < forwards[1][key] < forwards[2][key]
    # The third is predicted to take a little over four times the second's multiply-accumulates.
    for limit, count in ((4 * forwards[1]["macs"], 2), (0.0, 1)):
        limited = dataclasses.replace(settings, limit=limit)
        assert len(resolution.growing(Bench, limited, model)) == count


def test_exponents_are_those_of_the_larger_half_and_seconds_stay_apart():
    sizes = (4, 16, 1 << 12, 1 << 14)
    forwards = []
    for n in sizes:
        costs = {"seconds": 1 + n**2, "bytes": 5 * n, "macs": n**1.5}
        forwards.append({"side": n, "tokens": n, **costs})
    kept, timed = resolution.without_seconds(forwards), resolution.seconds_alone(forwards)
    assert timed["exponent"] == pytest.approx(2, abs=1e-3)
    assert kept["exponents"] == {
        "bytes": pytest.approx(1, abs=1e-6),
        "macs": pytest.approx(1.5, abs=1e-6),
    }
    assert [set(forward) for forward in kept["rows"]] == [{"side", "tokens", "bytes", "macs"}] * 4
    assert timed["rows"][2] == {"side": 1 << 12, "seconds": 1 + (1 << 12) ** 2}


def test_the_report_shows_the_study_once_it_has_run(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    assert resolution.sections() == []
    one = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    same = {"value": 100.0, "low": 100.0, "high": 100.0, "n": 4}
    mark = {"side": 128, "shape": one, "edges": one, "psnr": same}
    forwards = [{"side": 64, "tokens": 256, "bytes": 2**20, "macs": 8}]
    forwards += [{"side": 128, "tokens": 1024, "bytes": 2**31, "macs": 99}]
    teacher = {
        "folder": "dit-nano",
        "rows": [{"model": "a <b>", "marks": [mark]}],
        "forwards": {"a <b>": {"rows": forwards, "exponents": {"bytes": 1.0, "macs": 1.93}}},
        "asked": ["a disc"],
    }
    result = {"pictures": 4, "factor": 2, "strengths": [0.5], "steps": 3, "seed": 1}
    result["teachers"] = {"class": teacher}
    project.write_json(project.study(resolution.RESULT, write=True), result)
    titles, bodies = zip(*resolution.sections(), strict=True)
    assert titles == ("Other resolutions", "dit-nano from 128 px on")
    assert "50.0 <span" in bodies[1]
    assert "a &lt;b&gt;" in bodies[1]
    assert "2.0 GiB" in bodies[1]
    # seconds are in a run file that is not here
    cells = re.findall(r"<td[^>]*>(.*?)</td>", bodies[1])
    assert cells[-3:] == ["–", "1.00", "1.93"]
    assert "100.0" not in bodies[1]  # identical pictures have no distance worth a number
