"""The study of sizes: what it counts as steep, how it follows costs, what it shows."""

import pytest
import tiny
import torch

from linattn import project, redraw, world
from linattn.studies import resolution


class Bench:
    """What `growing` asks of a bench."""

    teacher = tiny.pipeline()

    @staticmethod
    def asked(count):
        return torch.zeros(count, dtype=torch.long)


Bench.teacher.conditions = resolution.sampling.Source.of(Bench.teacher).conditions


def test_the_repository_s_numbers_are_read_strictly(tmp_path):
    told = resolution.load()
    assert set(told.teachers) == {"class", "text", "text-joint"}
    text = (project.ROOT / resolution.PARAMS).read_text()
    for before, after, said in (
        ("pictures:", "picturs:", "did you mean 'pictures'"),
        ("pictures: 16", "pictures: many", "pictures is 'many' .* it must be a whole number"),
    ):
        (tmp_path / "params.yaml").write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=said):
            resolution.load(tmp_path / "params.yaml")


def test_true_pictures_are_steep_and_enlarged_ones_are_not():
    scenes = world.scenes(8, seed=3)
    small, large = world.render(scenes, 64), world.render(scenes, 256)
    soft = redraw.enlarged(small, (256, 256))
    assert (resolution.edges(soft) < 0.8 * resolution.edges(large)).all()
    assert (resolution.edges(torch.zeros(2, 3, 16, 16)) == 0).all()


def test_a_forward_grows_until_the_limit(capsys):
    told = resolution.load()
    told = resolution.dataclasses.replace(told, sides=(16, 32, 64), limit=1e12)
    rows = resolution.growing(Bench, told, Bench.teacher.transformer)
    assert [row["tokens"] for row in rows] == [16, 64, 256]
    assert all(row["seconds"] > 0 for row in rows)
    for key in ("bytes", "macs"):
        assert rows[0][key] < rows[1][key] < rows[2][key]
    # In multiply-accumulates: by its growth so far the third is predicted to take a little over
    # four times as many.
    between = resolution.dataclasses.replace(told, limit=4 * rows[1]["macs"])
    assert len(resolution.growing(Bench, between, Bench.teacher.transformer)) == 2
    stopped = resolution.growing(
        Bench, resolution.dataclasses.replace(told, limit=0.0), Bench.teacher.transformer
    )
    assert len(stopped) == 1


def test_exponents_are_those_of_the_larger_half_and_seconds_stay_apart():
    sizes = (4, 16, 1 << 12, 1 << 14)
    rows = [
        {"side": n, "tokens": n, "seconds": 1 + n**2, "bytes": 5 * n, "macs": n**1.5} for n in sizes
    ]
    kept, timed = resolution.without_seconds(rows), resolution.seconds_alone(rows)
    assert timed["exponent"] == pytest.approx(2, abs=1e-3)
    assert kept["exponents"] == {
        "bytes": pytest.approx(1, abs=1e-6),
        "macs": pytest.approx(1.5, abs=1e-6),
    }
    assert [set(row) for row in kept["rows"]] == [{"side", "tokens", "bytes", "macs"}] * 4
    assert timed["rows"][2] == {"side": 1 << 12, "seconds": 1 + (1 << 12) ** 2}


def test_what_was_measured_is_shown_and_nothing_where_nothing_was(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    assert resolution.sections() == []
    one = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    same = {"value": 100.0, "low": 100.0, "high": 100.0, "n": 4}
    mark = {"side": 128, "shape": one, "edges": one, "psnr": same}
    forwards = [{"side": 64, "tokens": 256, "bytes": 2**20, "macs": 8}]
    forwards += [{"side": 128, "tokens": 1024, "bytes": 2**31, "macs": 99}]
    part = {
        "folder": "dit-nano",
        "rows": [{"model": "a <b>", "marks": [mark]}],
        "forwards": {"a <b>": {"rows": forwards, "exponents": {"bytes": 1.0, "macs": 1.93}}},
        "asked": ["a disc"],
    }
    told = {"pictures": 4, "factor": 2, "strengths": [0.5], "steps": 3, "seed": 1}
    project.write_json(
        project.study(resolution.RESULT, write=True), {**told, "teachers": {"class": part}}
    )
    titles, bodies = zip(*resolution.sections(), strict=True)
    assert titles == ("Other resolutions", "dit-nano from 128 px on")
    assert "50.0 <span" in bodies[1]
    assert "a &lt;b&gt;" in bodies[1]
    assert "2.0 GiB" in bodies[1]
    # no seconds: they are in the run file, made elsewhere
    assert "<td>–</td><td>1.00</td><td>1.93</td>" in bodies[1]
    assert "100.0" not in bodies[1]  # identical pictures have no distance worth a number
