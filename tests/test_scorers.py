"""Pictures as GenEval, DPG-Bench and HPSv2 read them, and what their scorers write, read back.

Prompts and results are invented, in the true formats.
"""

import csv
import dataclasses
import json
from pathlib import Path

import kinds
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from linattn import sampling, scorers, surgery
from linattn.scorers.__main__ import main
from linattn.teachers import Teacher

GENEVAL = [
    {"tag": "counting", "include": [{"class": "ring", "count": 2}], "prompt": "two rings"},
    {
        "tag": "colors",
        "include": [{"class": "star", "count": 1, "color": "blue"}],
        "prompt": "a blue star",
    },
    {"tag": "colors", "include": [{"class": "heart", "count": 1}], "prompt": "a heart"},
]
DPG = [
    {"item_id": "12", "text": "a red ring left of a star", "proposition_id": "1"},
    {"item_id": "12", "text": "a red ring left of a star", "proposition_id": "2"},
    {"item_id": "COCO_7", "text": "a pink disc, on sand", "proposition_id": "1"},
]
STYLES = {"anime": ["a ring"], "concept-art": ["a star", "a heart"]}


def prompts(folder: Path, name: str) -> Path:
    """Write the prompts of a benchmark in its own format."""
    folder.mkdir(exist_ok=True)
    if name == "geneval":
        path = folder / "evaluation_metadata.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in GENEVAL))
        return path
    if name == "dpg":
        path = folder / "dpg_bench.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(DPG[0]))
            table.writeheader()
            table.writerows(DPG)
        return path
    for style, texts in STYLES.items():
        (folder / f"{style}.json").write_text(json.dumps(texts))
    return folder


def teacher(kind: str = "unet") -> Teacher:
    return Teacher(kinds.pipeline(kind), {"steps": 1, "guidance": 1.0, "side": 32}, kind)


def pixels(path: Path) -> torch.Tensor:
    """Return the picture of a file, (3, height, width) in 8 bits."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def names(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(folder)) for path in files)


# Laying out


def test_geneval_gets_a_folder_a_prompt_with_its_metadata(tmp_path):
    made, out = teacher(), tmp_path / "out"
    path = prompts(tmp_path / "prompts", "geneval")
    assert scorers.lay_out("geneval", path, made, out, pictures=2, batch=3) == out
    assert names(out) == [
        f"{number:05}/{file}"
        for number in range(3)
        for file in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    assert [json.loads((out / f"0000{n}/metadata.jsonl").read_text()) for n in range(3)] == GENEVAL
    texts = [entry["prompt"] for entry in GENEVAL for _ in range(2)]
    drawn = sampling.eight_bits(sampling.draw(made, texts, batch=1))
    for number, picture in enumerate(drawn):
        file = out / f"{number // 2:05}/samples/{number % 2:04}.png"
        assert (pixels(file).int() - picture.int()).abs().max() <= 1


def test_dpg_gets_a_grid_of_four_named_by_its_item(tmp_path):
    made, out = teacher(), tmp_path / "out"
    scorers.lay_out("dpg", prompts(tmp_path / "prompts", "dpg"), made, out)
    assert names(out) == ["12.png", "COCO_7.png"]
    drawn = sampling.eight_bits(sampling.draw(made, [DPG[0]["text"]] * 4))
    grid = pixels(out / "12.png")
    assert grid.shape == (3, 64, 64)
    # the scorer's own order: upper left, upper right, lower left, lower right
    for picture, (top, left) in zip(drawn, ((0, 0), (0, 32), (32, 0), (32, 32)), strict=True):
        cut = grid[:, top : top + 32, left : left + 32]
        assert (cut.int() - picture.int()).abs().max() <= 1


def test_dpgs_folder_of_texts_is_the_same_prompts(tmp_path):
    for entry in DPG:
        (tmp_path / f"{entry['item_id']}.txt").write_text(entry["text"] + "\n")
    from_table = scorers.benchmark("dpg").prompts(prompts(tmp_path / "table", "dpg"))
    assert scorers.benchmark("dpg").prompts(tmp_path) == from_table


def test_hpsv2_gets_a_folder_a_style(tmp_path):
    out = tmp_path / "out"
    scorers.lay_out("hpsv2", prompts(tmp_path / "prompts", "hpsv2"), teacher(), out)
    assert names(out) == ["anime/00000.jpg", "concept-art/00000.jpg", "concept-art/00001.jpg"]
    assert pixels(out / "anime/00000.jpg").shape == (3, 32, 32)
    with Image.open(out / "anime/00000.jpg") as picture:
        assert max(picture.quantization[0]) <= 12, "JPEG loses more than at quality 95"


def test_a_student_draws_other_pictures_than_its_teacher(tmp_path):
    made, path = teacher(), prompts(tmp_path / "prompts", "hpsv2")
    student = surgery.linearize(kinds.model("unet"), "linfusion")
    for name, model in (("teacher", None), ("student", student)):
        scorers.lay_out("hpsv2", path, made, tmp_path / name, model=model, student=name)
    file = "anime/00000.jpg"
    assert not torch.equal(pixels(tmp_path / "teacher" / file), pixels(tmp_path / "student" / file))


def test_a_call_that_was_ended_goes_on_and_draws_the_same(tmp_path, monkeypatch):
    made, path, out = teacher(), prompts(tmp_path / "prompts", "geneval"), tmp_path / "out"
    options = {"pictures": 1, "batch": 1}
    scorers.lay_out("geneval", path, made, out, **options)
    whole = {name: (out / name).read_bytes() for name in names(out)}
    (out / "00001/samples/0000.png").unlink()
    calls, draw = [], sampling.draw
    monkeypatch.setattr(
        sampling, "draw", lambda *args, **kwargs: calls.append(args) or draw(*args, **kwargs)
    )
    scorers.lay_out("geneval", path, made, out, **options)
    assert [texts for _, texts in calls] == [["a blue star"]]
    assert {name: (out / name).read_bytes() for name in names(out)} == whole
    with pytest.raises(ValueError, match=r"pictures of another draw \(seed differ from out.json\)"):
        scorers.lay_out("geneval", path, made, out, seed=1, **options)


def test_another_teacher_of_the_same_weights_does_not_go_on(tmp_path):
    made, path = teacher(), prompts(tmp_path / "prompts", "hpsv2")
    scorers.lay_out("hpsv2", path, made, tmp_path / "out")
    other = dataclasses.replace(made, folder="other")  # whose VAE and encoders may be others
    with pytest.raises(ValueError, match=r"another draw \(teacher differ from out.json\)"):
        scorers.lay_out("hpsv2", path, other, tmp_path / "out")


def test_a_student_that_was_trained_again_does_not_go_on(tmp_path):
    made, path = teacher(), prompts(tmp_path / "prompts", "hpsv2")
    student = surgery.linearize(kinds.model("unet"), "linfusion")
    options = {"model": student, "student": "mine"}
    scorers.lay_out("hpsv2", path, made, tmp_path / "out", **options)
    scorers.lay_out("hpsv2", path, made, tmp_path / "out", **options)
    with torch.no_grad():
        next(value for _, value in surgery.new_parameters(student)).add_(1)
    with pytest.raises(ValueError, match=r"another draw \(weights differ from out.json\)"):
        scorers.lay_out("hpsv2", path, made, tmp_path / "out", **options)


@pytest.mark.parametrize("name", ["geneval", "dpg"])
def test_a_mark_of_byte_order_is_no_part_of_a_file(name, tmp_path):
    path = prompts(tmp_path / "prompts", name)
    plain = scorers.benchmark(name).prompts(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert scorers.benchmark(name).prompts(path) == plain


def test_pictures_of_somebody_else_are_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="another draw.*name another folder"):
        scorers.lay_out(
            "hpsv2", prompts(tmp_path / "prompts", "hpsv2"), teacher(), tmp_path / "out"
        )
    assert names(tmp_path / "out") == ["mine.png"]


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("geneval", "a.jsonl", "", "no prompts in"),
        ("geneval", "a.jsonl", '{"prompt": "x", "tag": "y"}\nx', "line 2 of .* is no JSON"),
        ("geneval", "a.jsonl", '{"prompt": "x"}', "line 1 of .* has no tag"),
        ("geneval", "a.jsonl", '{"prompt": 5, "tag": "y"}', "line 1 of .*: prompt is 5, no str"),
        ("geneval", "a.jsonl", "[1]", "line 1 of .* has no prompt and no tag"),
        ("geneval", "a.jsonl", '{"prompt": " ", "tag": "y"}', "prompt 00000 in .* has no text"),
        ("dpg", "a.csv", "id,text\n1,a\n", "no column item_id; it has id, text"),
        ("dpg", "a.csv", "", "no column item_id and no text; it has none"),
        ("dpg", "a.csv", "item_id,text\n1,a\n1,b\n", "two texts for item_id 1"),
        ("dpg", "a.csv", "item_id,text\n1.5,a\n", "item_id '1.5'.*dot or a slash"),
        ("dpg", "a.csv", "item_id,text\n", "no prompts in"),
        ("hpsv2", "photo.json", "[1, 2]", "is no list of texts"),
        ("hpsv2", "photo.json", "[", "photo.json is no JSON"),
        ("hpsv2", "photo.json", "[]", "no prompts in"),
    ],
)
def test_prompts_of_another_form_are_refused_before_anything_is_drawn(
    name, file, content, says, tmp_path
):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=says):
        scorers.lay_out(name, tmp_path / file, teacher(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_laid_out_is_refused(tmp_path):
    path = prompts(tmp_path / "prompts", "dpg")
    with pytest.raises(ValueError, match="3 pictures of a prompt; dpg's scorer takes 1 or 4"):
        scorers.lay_out("dpg", path, teacher(), tmp_path / "out", pictures=3)
    with pytest.raises(ValueError, match="unknown benchmark 'genevel': did you mean 'geneval'"):
        scorers.lay_out("genevel", path, teacher(), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no prompts at"):
        scorers.lay_out("dpg", tmp_path / "none.csv", teacher(), tmp_path / "out")
    labels = Teacher(tiny.pipeline(), {"side": 32, "labels": list("abcd")}, "dit")
    with pytest.raises(ValueError, match="dit reads labels, and dpg's prompts are texts"):
        scorers.lay_out("dpg", path, labels, tmp_path / "out")


@pytest.mark.parametrize(
    "option",
    [{"batch": 0}, {"batch": "4"}, {"pictures": 0}, {"seed": 1.5}, {"steps": None, "size": "x"}],
)
def test_a_wrong_value_is_refused_before_anything_is_drawn(tmp_path, option):
    path = prompts(tmp_path / "prompts", "dpg")
    with pytest.raises(ValueError, match=list(option)[-1]):
        scorers.lay_out("dpg", path, teacher(), tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_the_command_draws_with_a_student_and_says_what_is_wrong(tmp_path, capsys):
    pipe = kinds.pipeline("unet")
    pipe.save_pretrained(tmp_path / "teacher")
    surgery.save(surgery.linearize(pipe, "linfusion"), tmp_path / "student")
    path = prompts(tmp_path / "prompts", "hpsv2")
    options = ["--teacher", str(tmp_path / "teacher"), "--side", "32", "--steps", "1"]
    student = ["--student", str(tmp_path / "student"), "--out", str(tmp_path / "out")]
    assert main(["hpsv2", str(path), *options, *student]) == 0
    assert len(names(tmp_path / "out")) == 3
    note = json.loads((tmp_path / "out.json").read_text())
    assert (note["student"], note["steps"]) == (str(tmp_path / "student"), 1)
    assert main(["hpsv2", str(path / "none.json"), *options, *student]) == 1
    assert "linattn: no prompts at" in capsys.readouterr().err


# Reading back


def lines(*entries) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_genevals_score_is_the_mean_over_tags(tmp_path):
    path = tmp_path / "results.jsonl"
    entries = [
        {"tag": tag, "prompt": prompt, "metadata": prompt, "correct": correct, "filename": file}
        for file, tag, prompt, correct in [
            ("00000/samples/0000.png", "counting", "two rings", True),
            ("00000/samples/0001.png", "counting", "two rings", False),
            ("00001/samples/0000.png", "counting", "three rings", False),
            ("00002/samples/0000.png", "colors", "a blue star", True),
        ]
    ]
    path.write_text(lines(*entries))
    measures = scorers.read("geneval", path)
    assert list(measures) == ["geneval", "geneval_counting", "geneval_colors"]
    assert measures["geneval"]["value"] == pytest.approx((1 / 3 + 1) / 2)
    assert measures["geneval_colors"] == {"value": 1.0, "low": None, "high": None, "n": 1}
    counting = measures["geneval_counting"]
    assert (counting["value"], counting["n"]) == (0.25, 2)
    assert counting["low"] <= 0.25 <= counting["high"]


def test_a_file_of_results_that_was_cut_is_refused_while_its_pictures_lie_there(tmp_path):
    path, pictures = tmp_path / "results.jsonl", []
    for number in range(3):
        pictures.append(tmp_path / "out" / f"{number:05}" / "samples" / "0000.png")
        pictures[-1].parent.mkdir(parents=True)
        pictures[-1].touch()
    entries = [
        {"tag": "counting", "prompt": str(file), "correct": True, "filename": str(file)}
        for file in pictures
    ]
    path.write_text(lines(*entries[:1]))
    with pytest.raises(ValueError, match=r"no result of .*00001/samples/0000\.png and 1 others"):
        scorers.read("geneval", path)
    path.write_text(lines(*entries))
    assert scorers.read("geneval", path)["geneval"]["n"] == 3
    pictures[2].unlink()
    assert scorers.read("geneval", path)["geneval"]["n"] == 3


DPG_RESULT = """/pictures/12.png, 1.0, 0.5, 0.5, 1.0, 0.75
/pictures, all/COCO_7.png, 0.0, 1.0, 0.5, 0.5, 0.5
Model: pictures
L1 category scores:
\tentity: 75.0
L2 category scores:
\tentity - whole: 80.0
\tother - text: 50.0
Image path: /pictures
Save results to: /pictures/dpg-bench_1_results.txt
DPG-Bench score: 62.5
"""


def test_dpgs_scores_are_read_in_percent(tmp_path):
    path = tmp_path / "dpg-bench_1_results.txt"
    path.write_text(DPG_RESULT)
    measures = scorers.read("dpg", path)
    values = {name: measure["value"] for name, measure in measures.items()}
    assert values == {
        "dpg": 62.5,
        "dpg_entity": 75.0,
        "dpg_entity_whole": 80.0,
        "dpg_other_text": 50.0,
    }
    assert measures["dpg"]["n"] == 2
    assert measures["dpg"]["low"] < 62.5 < measures["dpg"]["high"]


# As Python's print writes it: the arguments with a space between them.
HPSV2_RESULT = "\n".join(
    [
        "Loading model ...",
        "-----------benchmark score ---------------- ",
        " ".join(["mine", f"{'anime':<15}", "27.35", "\t", "0.2113"]),
        " ".join(["mine", f"{'concept-art':<15}", "26.10", "\t", "0.1000"]),
        " ".join(["mine", f"{'Average':<15}", "26.73", "\t"]),
        "",
    ]
)


def test_hpsv2s_scores_are_read_from_what_it_prints(tmp_path):
    path = tmp_path / "scores.txt"
    path.write_text(HPSV2_RESULT)
    values = {name: measure["value"] for name, measure in scorers.read("hpsv2", path).items()}
    assert values == {"hpsv2_anime": 27.35, "hpsv2_concept-art": 26.1, "hpsv2": 26.73}


TWICE = '{"filename": "0.png", "tag": "a", "prompt": "b", "correct": true}\n' * 2


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("geneval", "", "has no results"),
        ("geneval", '{"tag": "a", "prompt": "b"}', "line 1 of .* has no correct"),
        (
            "geneval",
            '{"tag": "a", "prompt": "b", "correct": "false"}',
            "correct is 'false', no bool",
        ),
        ("geneval", TWICE, "two results of 0.png: keep one run"),
        ("geneval", "Summary\n=======", "line 1 of .* is no JSON"),
        ("dpg", "a.png, (0, 0), is it red?, yes\n", "0 lines 'DPG-Bench score"),
        ("dpg", "DPG-Bench score: 50.0\n", "no line of a picture"),
        ("dpg", "a.png, 1.0, 1.0\n" + DPG_RESULT, "a score of 62.5.*lines of another run"),
        ("dpg", DPG_RESULT * 2, "2 lines 'DPG-Bench score"),
        ("dpg", DPG_RESULT.replace("75.0", "nan"), "score of nan, which is no percentage"),
        ("hpsv2", "Loading model ...\n", "scores of 0 models"),
        ("hpsv2", HPSV2_RESULT + HPSV2_RESULT.replace("mine", "yours"), "2 models.*mine, yours"),
        ("hpsv2", HPSV2_RESULT * 2, "two scores of anime"),
        ("hpsv2", HPSV2_RESULT.replace("27.35", "2735.00"), "2735.00 for anime.*hundredfold"),
        ("hpsv2", HPSV2_RESULT.replace("27.35", "nan"), "nan for fewer than 800 prompts"),
    ],
)
def test_results_of_another_form_are_refused(name, content, says, tmp_path):
    path = tmp_path / "results.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        scorers.read(name, path)


def test_a_result_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl; geneval's scorer writes it"):
        scorers.read("geneval", tmp_path / "none.jsonl")
