"""The passages of README.md and docs/ that are written from results, on invented results."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_results
from PIL import Image

from linattn import project, report
from linattn.attention import OPERATORS
from linattn.passages import blocks, calls, choices, grids, ideas, operators, readme, results
from linattn.report import release

FEW = {name: synthetic_results.STUDENTS[name] for name in ("softmax", "clear", "linfusion", "lit")}
NO_RUN = report.Report("nano", {})
CLONE = Path(__file__).resolve().parents[1]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    synthetic_results.write_all(FEW, failed="linfusion")
    return report.read(FEW, "nano")


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Read a report of three teachers, one of which has no result yet."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    text = {name: synthetic_results.TEXT[name] for name in ("sd-softmax", "sd-lit")}
    synthetic_results.write_all({**FEW, **text}, failed="linfusion")
    waiting = {"flux-clear": synthetic_results.TEXT["flux-clear"]}
    return report.read({**FEW, **text, **waiting}, "nano", teachers=synthetic_results.TEACHERS)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """Return the Markdown tables of a text, each as a list of lines of cells without the rule."""
    written, inside = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            written += [] if inside else [[]]
            written[-1].append(cells(line))
        inside = line.startswith("|")
    return [[line for line in table if "---" not in line[-1]] for table in written]


def column(table, title):
    """Map the name of each row to its cell of a column."""
    titles, *body = table
    return {row[0]: row[titles.index(title)] for row in body}


# docs/results.md


def test_every_student_has_a_row_in_both_tables_of_its_teacher(data):
    near, marks = tables(results.tables(data))
    references = ["teacher", "teacher, 8 steps", "chance"]
    assert [row[0] for row in near[1:]] == [*references, *FEW]
    assert [row[0] for row in marks[1:]] == [*references, *FEW]
    for table in (near, marks):
        assert len({len(row) for row in table}) == 1


def test_the_table_holds_the_numbers_of_the_results(data):
    near, _ = tables(results.tables(data))
    assert column(near, "Error")["clear"].startswith("9.0<br>(")
    assert column(near, results.UNDISTILLED)["clear"] == "23.3"


def test_every_column_of_the_overview_is_in_one_of_the_two_tables(several):
    titles = set()
    for table in tables(results.tables(several)):
        titles |= set(table[0])
    full = {column.title for column in report.table(several).columns}
    assert full <= titles


def test_no_table_has_a_column_or_a_row_without_a_number(several):
    for table in tables(results.tables(several)):
        titles, *body = table
        for place, title in enumerate(titles[1:], 1):
            assert title == results.UNDISTILLED or any(row[place] not in "–" for row in body)
        assert all(any(cell not in "–" for cell in row[1:]) for row in body)


def test_the_best_method_is_bold_and_a_control_never(data):
    near, _ = tables(results.tables(data))
    errors = column(near, "Error")
    assert [name for name, cell in errors.items() if cell.startswith("**")] == ["lit"]


def test_a_failed_student_is_named_as_failed(data):
    assert "| linfusion | failed: the loss became NaN at step 12 |" in results.tables(data)


def test_circumstances_name_sizes_seeds_and_the_machine(data):
    sentence = results.circumstances(data)
    assert all(size in sentence for size in ("128 pictures", "seed 1000", "[0]"))
    assert all(fact in sentence for fact in ("A processor of 2020", "torch 2.13.0", "0123456789ab"))


def test_every_teacher_has_a_heading_and_the_best_of_its_own(several):
    text = results.tables(several)
    for heading in ("### dit-nano", "### sd-nano", "### flux-nano"):
        assert text.count(heading) == 1
    assert "### flux-nano\n\nIt draws from captions, read by joint attention. No results" in text
    near, _, text_near, _ = tables(text)
    bold = []
    for table in (near, text_near):
        bold += [name for name, cell in column(table, "Error").items() if cell.startswith("**")]
    assert bold == ["lit"]  # sd-lit has no other beside it


def test_the_legend_says_what_each_column_means(several):
    legend = results.legend(several)
    assert all(
        f"- {column.title}: {column.note}." in legend for column in report.table(several).columns
    )
    assert "bold is the best method of each teacher" in legend


def test_circumstances_that_all_teachers_share_stand_there_once(several):
    sentence = results.circumstances(several)
    assert sentence.count("128 pictures a row") == 1
    assert "Half of the pictures of sd-nano show one thing" in sentence


def test_circumstances_name_the_commit_of_every_row(several):
    assert results.circumstances(several).endswith("commit 0123456789ab.")
    runs = several.parts["text"].runs
    facts = {**runs["sd-lit"]["facts"], "commit": "fedcba987654"}
    runs["sd-lit"] = {**runs["sd-lit"], "facts": facts}
    assert results.circumstances(several).endswith("commits 0123456789ab, fedcba987654.")


def test_a_missing_row_of_a_teacher_stops_neither_tables_nor_circumstances(several):
    several.parts["text"].teacher = {}
    assert "sd-lit" in results.tables(several)
    assert "docs/pictures-text.png" not in grids.of_teachers(several)
    assert "evaluation seed 1000" in results.circumstances(several)


# The README's first screen


def test_each_operator_has_one_row_with_its_best_student_of_every_teacher(several):
    (table,) = tables(ideas.table(several))
    assert table[0] == [
        *("operator", "error on DiT", "error on UNet"),
        *("ms at 64K", "MB at 64K"),
    ]
    assert column(table, "error on UNet")["`lit`"].startswith("**5.0** (")
    assert column(table, "error on DiT")["`clear`"] == "9.0 (8.1–9.9)"
    assert column(table, "error on UNet")["`clear`"] == "–"
    assert column(table, "error on DiT")["`softmax`"].startswith("0.1")
    assert "`linfusion`" not in column(table, "error on DiT")  # it failed


def test_a_teacher_is_called_by_its_backbone_whatever_its_name_is(several):
    data = next(iter(several.parts.values()))
    stranger = dataclasses.replace(data, folder="mine", model="PixArtTransformer2DModel")
    assert ideas.backbone(stranger) == "PixArt"
    assert ideas.backbone(dataclasses.replace(stranger, model="Mine")) == "mine"


def test_of_two_students_of_one_operator_the_nearer_one_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setenv(project.PIPELINE, "1")
    both = {name: synthetic_results.STUDENTS[name] for name in ("clear", "clear-pool")}
    synthetic_results.write_all(both)
    text = ideas.table(report.read(both, "nano", teachers=synthetic_results.TEACHERS))
    (table,) = tables(text)
    assert column(table, "error on DiT") == {"`clear`": "**6.0** (5.4–6.6)"}
    assert "(`clear`: clear-pool)" in text


def test_the_finding_is_the_reports_and_names_the_farthest(several):
    sentence = ideas.finding(several)
    assert sentence.startswith(report.sentences.headline(several).replace("\u00a0", " "))
    assert sentence.endswith("Farthest from its teacher is clear (9.0 %).")  # no GPU was timed


def timing(case, provider, ms):
    return {"case": case, "provider": provider, "skipped": "", "ms": ms, "memory_mb": "144.3"}


def test_a_call_of_64k_tokens_is_compared_with_cudnn_in_the_same_case():
    timings = [
        timing("linear dit 65536 forward", "ours", 0.5),
        timing("linear dit 65536 forward", "sdpa-cudnn", 50.0),
        timing("window r=16 text=0 dit 65536 forward", "ours", 2.0),
        timing("mediator m=64 dit 65536 forward", "ours", 0.3) | {"skipped": "no GPU"},
    ]
    by_operator = calls.at_64k(timings, "dit")
    assert list(by_operator) == ["softmax", "clear", "linfusion"]
    assert (by_operator["linfusion"].times_less, by_operator["clear"].times_less) == (100.0, None)
    assert by_operator["softmax"].ms == 50.0
    assert not calls.at_64k(timings, "flux")


@pytest.mark.parametrize("write", [ideas.finding, ideas.table, results.section])
def test_without_a_run_a_passage_says_how_to_make_one(write):
    assert "make repro" in write(NO_RUN)


# docs/which-operator.md


def test_students_are_named_in_the_order_of_their_errors(several):
    (table,) = tables(choices.nearest(several))
    order = column(table, "students by error, the nearest first")
    assert [entry.split()[0] for entry in order["DiT (dit-nano)"].split("<br>")] == ["lit", "clear"]
    assert order["FLUX (flux-nano)"] == "no result yet"
    assert column(table, "not tried")["UNet (sd-nano)"] == "`clear`, `linfusion`"


def test_errors_before_training_have_an_order_of_their_own(several):
    (table,) = tables(choices.undistilled(several))
    order = dict(table[1:])
    names = [entry.split()[0] for entry in order["DiT (dit-nano)"].split("<br>")]
    assert names == ["clear", "lit"]


def test_without_studies_and_timings_the_tables_say_how_to_make_them(several):
    assert "make study STUDY=resolution" in choices.upscaling(several)
    assert "make study STUDY=plugins" in choices.plugins(several)
    several.parts["class"].benchmark = {}
    assert choices.cheapest(several).startswith(
        "No run on a GPU is committed yet: `make gpu-check`"
    )


def test_times_on_a_processor_are_of_the_largest_size_the_fastest_first(data):
    timings = [
        {"operator": name, "tokens": tokens, "seconds": seconds, "threads": 2, "baseline": "dense"}
        for name, tokens, seconds in (("dense", 64, 1.0), ("dense", 256, 8.0), ("lit", 256, 0.5))
    ]
    facts = {"hardware": {"cpu": "A processor of 2020"}}
    data.only.benchmark = {"rows": timings, "facts": facts, "heads": 4, "head_dim": 32}
    (table,) = tables(choices.cheapest(data))
    assert table[1:] == [["`lit`", "500", "16"], ["`dense`", "8,000", "1"]]
    assert "One call of 256 tokens, 4 heads of 32" in choices.cheapest(data)


def test_the_share_of_a_study_is_a_count(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "ROOT", tmp_path)
    marks = [{"side": 128, "shape": {"value": 0.375, "n": 8}}]
    entry = {"folder": "dit-nano", "rows": [{"model": "clear", "marks": marks}]}
    study = {"teachers": {"class": entry}, "strengths": [0.6]}
    path = tmp_path / "reports" / "studies" / "resolution.json"
    path.parent.mkdir(parents=True)
    project.write_json(path, study)
    (table,) = tables(choices.upscaling(NO_RUN))
    assert table[1] == ["dit-nano", "clear", "3 of 8"]


# Pictures


def test_the_picture_has_a_row_for_the_teacher_and_every_student_that_finished(data):
    picture = grids.of_teacher(data.only)
    assert all(name in picture.alt for name in ("teacher", "softmax", "clear", "lit"))
    assert "linfusion" not in picture.alt
    drawn = grids.of_teachers(data)
    assert grids.lines(drawn, "docs/results.md") == f"![{picture.alt}](pictures-class.png)"
    assert grids.lines(drawn, "README.md") == f"![{picture.alt}](docs/pictures-class.png)"


@pytest.mark.parametrize("draw", [grids.of_teachers, grids.of_all])
def test_missing_pictures_are_named(data, draw):
    data.only.pictures.pop("clear")
    with pytest.raises(FileNotFoundError, match="no pictures of clear.*make publish"):
        draw(data)


def test_every_teacher_with_results_has_a_grid_of_its_own(several):
    drawn = grids.of_teachers(several)
    assert list(drawn) == ["docs/pictures-class.png", "docs/pictures-text.png"]
    captions = [scene.caption for scene in synthetic_results.scenes("text")]
    alt = drawn["docs/pictures-text.png"].alt
    assert all(caption in alt for caption in captions[: grids.CAPTIONED])
    assert captions[grids.CAPTIONED] not in alt


def test_one_picture_shows_all_teachers(several):
    ((path, picture),) = grids.of_all(several).items()
    assert path == grids.OVERVIEW
    assert all(name in picture.alt for name in ("dit-nano", "sd-nano"))


def test_captioned_pictures_are_small_enough_for_git(several):
    class_grid, text_grid = grids.of_teachers(several).values()
    assert text_grid.size[0] < class_grid.size[0]
    assert len(grids.small(text_grid.png)) < 150_000


def test_a_picture_in_git_keeps_the_colour_of_what_is_small():
    """Cyan arrows became blue and green among the greys of all other pictures."""
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    noise[:, :, 1] = noise[:, :, 0]
    noise[200:210, 200:210] = (26, 188, 232)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    small = Image.open(io.BytesIO(grids.small(buffer.getvalue()))).convert("RGB")
    patch = np.asarray(small)[200:210, 200:210].astype(int)
    assert np.abs(patch - np.array([26, 188, 232])).max() < 30


# The command


@pytest.fixture
def clone(several, tmp_path, monkeypatch):
    """Return a folder with the pages of BLOCKS and PICTURES, which hold their marks alone."""
    lines = {}
    marks = [(block.path, block.mark) for block in readme.BLOCKS] + list(readme.PICTURES)
    for path, mark in marks:
        block = blocks.Block(path, mark, str)
        lines.setdefault(path, ["before"]).extend([block.begin, "old", block.end, "between"])
    for path, text in lines.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("\n".join([*text, "after"]))
    shutil.rmtree(tmp_path / "data" / "teachers")
    for path in ("params.yaml", "dvc.yaml", "data/teachers"):
        (tmp_path / path).symlink_to(CLONE / path)
    for data in several.parts.values():
        data.benchmark = {}
    monkeypatch.setattr(release, "committed", lambda: several)
    return tmp_path


def test_the_command_writes_every_block_and_checks_it(clone, capsys):
    assert readme.main(["--check"]) == 1
    assert "ideas of README.md is behind" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = (clone / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert not list((clone / "docs").glob("*.png"))


def test_the_check_sees_a_changed_number_or_machine_and_names_the_block(clone, several, capsys):
    readme.main([])
    assert not readme.behind(several)
    several.facts["hardware"]["cores"] += 1
    assert "results of docs/results.md" in readme.behind(several)
    several.facts["hardware"]["cores"] -= 1
    several.results["clear"]["quality"]["error"]["value"] += 0.05
    assert "nearest of docs/which-operator.md" in readme.behind(several)


def test_the_command_draws_pictures_where_it_is_asked_to_and_keeps_them_else(clone):
    assert readme.main(["--pictures"]) == 0
    drawn = (clone / "docs" / "results.md").read_text()
    assert drawn.count("](pictures-") == 2
    assert "](docs/pictures.png)" in (clone / "README.md").read_text()
    assert readme.main([]) == 0
    assert (clone / "docs" / "results.md").read_text() == drawn
    assert sorted(path.name for path in (clone / "docs").glob("*.png")) == [
        *("pictures-class.png", "pictures-text.png", "pictures.png"),
    ]


def test_a_page_that_is_missing_is_named(clone):
    (clone / "docs" / "kernels.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"docs/kernels.md is named in .*readme.py"):
        readme.main([])


def test_only_what_stands_between_the_marks_changes():
    block = blocks.Block("README.md", "results", str)
    new = block.put(f"before\n{block.begin}\nold\n{block.end}\nafter\n", "new")
    assert new == f"before\n{block.begin}\nnew\n{block.end}\nafter\n"
    assert block.put(new, "new") == new
    assert block.content(new) == "new"


@pytest.mark.parametrize("block", readme.BLOCKS, ids=lambda block: block.mark)
@pytest.mark.parametrize("letters", ["", "b", "bee", "eb"])
def test_missing_doubled_or_swapped_marks_are_refused(letters, block):
    text = "".join({"b": block.begin, "e": block.end}[letter] for letter in letters)
    with pytest.raises(ValueError, match=rf"{block.path} has .*once each"):
        block.put(text, "new")


def test_no_two_blocks_have_the_same_marks():
    marks = [(block.path, block.mark) for block in readme.BLOCKS] + list(readme.PICTURES)
    assert len(marks) == len(set(marks))


def test_a_run_on_this_machine_does_not_change_what_is_published(data, tmp_path):
    """What lies in reports/local is not published."""
    assert not report.read(FEW, "nano", committed=True).results
    shutil.copytree(tmp_path / project.LOCAL, tmp_path / "reports", dirs_exist_ok=True)
    changed = project.read_json(project.result("clear"))
    changed["quality"]["error"]["value"] += 0.05
    project.write_json(project.result("clear", write=True), changed)
    assert ideas.table(report.read(FEW, "nano", committed=True)) == ideas.table(data)
    assert ideas.table(report.read(FEW, "nano")) != ideas.table(data)


def test_the_operators_table_says_what_every_operator_is_and_does():
    table = operators.table()
    for operator in OPERATORS.values():
        assert f"| `{operator.name}` | {operator.paper} | {operator.gist} |" in table
        assert operator.about
        assert operator.text


def test_every_profile_is_a_column_with_its_own_numbers():
    from linattn.passages import profiles

    (table,) = tables(profiles.profiles())
    assert table[0][1:] == [
        f"`{name}`" for name in ("nano", "tiny", "full", "paper", "real", "rehearse")
    ]
    assert column(table, "`nano`")["then end to end"] == "100 steps"
    (stages,) = tables(profiles.stages())
    assert ["`distill`", "[04_distill](../notebooks/04_distill.ipynb)"] in [
        row[:2] for row in stages
    ]
