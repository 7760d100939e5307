"""The report compares rows in pairs where they keep their sums, and by intervals where not."""

import copy
import dataclasses

import numpy as np
import pytest
import synthetic_results
from pages import check

from linattn import report
from linattn.report import matrix, pages, pairs, ranking, sentences, tables

NAMES = ("softmax", "clear", "clear-pool", "lit")
STUDENTS = {name: synthetic_results.STUDENTS[name] for name in NAMES}


def squares(error, spread, name):
    """Draw squares of 64 pictures, difficult for all rows alike, whose quotient is the error."""
    shared = np.random.default_rng(0).lognormal(0, 0.5, (5, 64))
    own = np.random.default_rng(list(name.encode())).lognormal(0, spread, (5, 64))
    drawn = shared * own
    return (error * drawn / drawn.mean(1, keepdims=True)).tolist()


def row(name, errors, seeds=(0,), spread=0.1, right=100):
    """Return a result of the errors of its seeds, with intervals that reach 20 % to each side."""
    result = synthetic_results.result(name, STUDENTS[name])
    mean = float(np.mean(errors))
    marks = {"shape": "1" * right + "0" * (128 - right)}
    of_seeds = {}
    for seed, error in zip(seeds, errors, strict=True):
        numbers = squares(error, spread, f"{name}{seed}")
        of_seeds[str(seed)] = {"error": numbers, "marks": marks}
    result["quality"]["error"] = synthetic_results.measure(mean, 0.2 * mean, 64)
    shape = right / 128
    result["quality"]["shape"] = synthetic_results.measure(shape, 0.06)
    tally = {"teacher": [[1.0] * 64] * 5, "seeds": of_seeds}
    return {**result, "seeds": list(seeds), "tally": tally}


def teacher(**changes):
    results = {
        "softmax": row("softmax", [0.01]),
        "clear-pool": row("clear-pool", [0.050]),
        "lit": row("lit", [0.055]),
        "clear": row("clear", [0.09], right=60),
    }
    return report.Data("nano", STUDENTS, "class", "dit-nano", results={**results, **changes})


def without(data):
    """Return the data of a run of before, which kept no sums."""
    results = copy.deepcopy(data.results)
    for result in results.values():
        del result["tally"]
    return dataclasses.replace(data, results=results)


def closest(data):
    return next(iter(sentences._closest(data)))


def test_two_rows_are_apart_in_pairs_though_their_intervals_overlap():
    data = teacher()
    assert ranking.differ(data, "error", "clear-pool", "lit")
    assert "on the same 64 pictures their ratio is 0.91 (0.8" in closest(data)
    assert "after Holm over 6 pairs), so these two trainings are apart" in closest(data)
    assert sentences.headline(report.Report("nano", {"class": data})) == (
        "Closest to dit-nano: clear-pool (5.0\xa0%)."
    )


def test_a_run_without_sums_is_compared_by_its_intervals_and_says_so():
    data = without(teacher())
    assert not ranking.differ(data, "error", "clear-pool", "lit")
    assert closest(data).endswith("; their intervals overlap, so the order is open.")
    assert pairs.note([data]) == pairs.WITHOUT
    assert matrix.of_teacher(data) is None
    assert pairs.note([teacher()]) == pairs.note([teacher(), data]) == pairs.WITH


def test_a_noisy_pair_leaves_the_order_open():
    data = teacher(lit=row("lit", [0.052], spread=0.8))
    assert not ranking.differ(data, "error", "lit", "clear-pool")
    assert closest(data).endswith("so the order is open.")


def test_two_seeds_that_disagree_leave_open_what_one_would_settle():
    pool = row("clear-pool", [0.050, 0.050], (0, 1))
    for errors, apart in (((0.055, 0.055), True), ((0.051, 0.060), False)):
        data = teacher(**{"clear-pool": pool, "lit": row("lit", errors, (0, 1))})
        assert ranking.differ(data, "error", "clear-pool", "lit") is apart
    one_seed = teacher(**{"clear-pool": pool, "lit": row("lit", [0.055], (1,))})
    assert pairs.of_teacher(one_seed, "error", "lit", "clear-pool").contrast.seeds == (1,)


def test_a_pair_is_corrected_for_all_pairs_of_the_teacher():
    data = teacher()
    pair = pairs.of_teacher(data, "error", "lit", "clear-pool")
    assert pair.pairs == 6
    assert pair.p == pytest.approx(6 * pair.contrast.p, rel=0.9)
    assert pair.p > pair.contrast.p
    assert pairs.of_teacher(data, "error", "lit", "lit") is None


def test_bold_and_open_cells_follow_the_pairs():
    def marked(data):
        columns = [column for column in tables.COLUMNS if column.key in ("error", "shape")]
        rows = tables.students(data, columns)
        return {row.name: [(cell.best, cell.close) for cell in row.cells] for row in rows}

    assert marked(teacher())["lit"] == [(False, False), (True, False)]
    assert marked(without(teacher()))["lit"] == [(False, True), (True, False)]
    assert marked(teacher())["clear-pool"] == [(True, False), (True, False)]
    assert marked(teacher(clear=row("clear", [0.09], right=97)))["clear"][1] == (False, True)


def test_a_shape_is_compared_picture_by_picture():
    """Three pictures of 128 that one row alone gets wrong leave the order open, sixty do not."""
    for right, apart in ((97, False), (40, True)):
        data = teacher(clear=row("clear", [0.09], right=right))
        assert ranking.differ(data, "shape", "clear", "lit") is apart
    assert pairs.of_teacher(data, "shape", "clear", "lit").contrast.value == -60 / 128
    assert pairs.of_teacher(data, "psnr", "clear", "lit") is None


def test_few_pictures_are_compared_by_intervals():
    data = teacher()
    for result in data.results.values():
        kept = result["tally"]
        kept["teacher"] = [level[:15] for level in kept["teacher"]]
        kept["seeds"]["0"]["error"] = [level[:15] for level in kept["seeds"]["0"]["error"]]
    assert pairs.of_teacher(data, "error", "lit", "clear-pool") is None


def test_the_matrix_has_each_pair_once_the_closest_first():
    shown = matrix.of_teacher(teacher())
    assert shown.columns == ("softmax", "clear-pool", "lit")
    assert [name for name, _ in shown.lines] == ["clear-pool", "lit", "clear"]
    cells = dict(shown.lines)["lit"]
    assert [cell.text for cell in cells] == ["5.50", "1.10", ""]
    assert cells[1].best
    open_order = matrix.of_teacher(teacher(lit=row("lit", [0.052], spread=0.8)))
    assert dict(open_order.lines)["lit"][1].close


def test_the_page_shows_the_matrix_where_there_are_pairs():
    for data, shown in ((teacher(), True), (without(teacher()), False)):
        text = check(pages.teacher_html(report.Report("nano", {"class": data}), "class")).text
        assert ("Who is apart from whom" in text) is shown
        assert (pairs.WITH in text) is shown
        assert (pairs.WITHOUT in text) is not shown
