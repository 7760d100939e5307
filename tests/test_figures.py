import itertools
import struct

import numpy as np
import pytest
import torch

from linattn.attention import OPERATORS
from linattn.report import figures
from linattn.report.figures import canvas, curves
from linattn.report.figures.pictures import fitted, stacked
from linattn.report.looks import looks
from linattn.report.numbers import short
from linattn.report.picture import Picture

LOOKS = looks({"softmax": "softmax", "clear": "clear", "clear-pool": "clear", "lit": "lit"})
CURVE = {
    "step": [0, 10, 20],
    "loss": [1.0, 0.5, 0.1],
    "stage": ["layerwise", "layerwise", "end-to-end"],
}
TIMINGS = [
    {"operator": "softmax", "tokens": 256, "seconds": 1e-3 * 256**2},
    {"operator": "softmax", "tokens": 1024, "seconds": 1e-3 * 1024**2},
    {"operator": "softmax", "tokens": 4096, "seconds": 1e-3 * 4096**2},
    {"operator": "clear", "tokens": 256, "seconds": 1e-3 * 256},
    {"operator": "clear", "tokens": 1024, "seconds": 1e-3 * 1024},
    {"operator": "clear", "tokens": 4096, "seconds": 1e-3 * 4096},
]


def a_grid():
    pictures = {"teacher": torch.rand(3, 3, 8, 8), "b": torch.rand(2, 3, 8, 8)}
    return figures.grid(pictures, ["a b", "c", "d"])


def a_difference():
    return figures.difference(torch.zeros(3, 8, 8), torch.ones(3, 8, 8))


def a_map():
    return figures.attention_over(torch.rand(3, 9, 12), {"teacher": np.eye(3, 4)}, 5)


def a_scatter():
    interval = {"y": 90.0, "low": 80.0, "high": 95.0}
    student = {"name": "clear", "x": 1e6, "look": LOOKS["clear"], **interval}
    teacher = {"name": "teacher", "x": 1e7, "y": 90.0}
    return figures.quality_cost([student, teacher], x="cost", y="shape right, %")


def some_curves():
    return figures.training({"clear": CURVE, "lit": CURVE, "softmax": CURVE}, LOOKS)


def some_bars():
    errors = {"clear": {"before": 20.0, "after": 2.0}, "lit": {"before": None, "after": 1.0}}
    return figures.bars(errors, LOOKS, "error")


def a_heatmap():
    names = {"rows": ["0", "1"], "columns": ["a", "b"], "x": "noise", "y": "layer"}
    return figures.heatmap([[1.0, 2.0], [3.0, None]], title="entropy", **names)


EVERY = {
    "grid": a_grid,
    "difference": a_difference,
    "attention_over": a_map,
    "quality_cost": a_scatter,
    "speed": lambda: figures.speed(TIMINGS, LOOKS, "softmax"),
    "training": some_curves,
    "by_noise": lambda: figures.by_noise([0.1, 0.9], {"clear": [1.0, 2.0]}, LOOKS, "error"),
    "bars": some_bars,
    "heatmap": a_heatmap,
    "confusion": lambda: figures.confusion([[3, 1], [0, 4]], ["disc", "ring"]),
    "strip": lambda: figures.strip(torch.rand(2, 3, 8, 8), "two pictures"),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_is_a_described_png_with_the_same_bytes_twice(name):
    torch.manual_seed(0)
    first = EVERY[name]()
    torch.manual_seed(0)
    again = EVERY[name]()
    assert first.png.startswith(b"\x89PNG")
    assert first.png == again.png
    assert len(first.alt) > 5
    assert b"Software" not in first.png
    assert b"tIME" not in first.png
    assert first.size == struct.unpack(">II", first.png[16:24])


def test_a_notebook_shows_the_alt_text_escaped():
    picture = figures.strip(torch.zeros(1, 3, 4, 4), 'a "red" disc & <more>')
    shown = picture._repr_mimebundle_()["text/html"]
    assert 'alt="a &quot;red&quot; disc &amp; &lt;more&gt;"' in shown
    assert 'src="data:image/png;base64,' in shown


def test_a_picture_without_an_alt_text_is_refused():
    with pytest.raises(ValueError, match="alt text"):
        Picture(b"", " ")


def test_alt_texts_carry_the_numbers():
    assert "90 at 1 M" in EVERY["quality_cost"]().alt
    assert "exponent 2.00" in EVERY["speed"]().alt
    assert "88 % right" in EVERY["confusion"]().alt
    assert "disc seen as ring 25 %" in EVERY["confusion"]().alt
    assert "row 2 of 3, column 2 of 4" in EVERY["attention_over"]().alt
    assert "lowest 1 at layer 0, noise a" in EVERY["heatmap"]().alt


def test_a_student_looks_the_same_whatever_the_other_students_are():
    fewer = looks({"clear": "clear", "lit": "lit"})
    assert fewer["clear"] == LOOKS["clear"]
    assert fewer["lit"] == LOOKS["lit"]
    assert LOOKS["clear-pool"].colour != LOOKS["clear"].colour
    assert LOOKS["clear-pool"].marker != LOOKS["clear"].marker


def test_an_operator_without_a_hue_gets_a_spare_colour():
    more = looks({f"new{i}": f"operator{i}" for i in range(6)} | {"clear": "clear"})
    assert more["new0"].colour not in {operator.hue for operator in OPERATORS.values()}
    assert more["new0"].colour != more["new1"].colour
    assert more["clear"] == LOOKS["clear"]


def test_a_strip_holds_the_pictures_pixel_by_pixel():
    from io import BytesIO

    from PIL import Image

    pictures = torch.rand(3, 3, 5, 7)
    strip = figures.strip(pictures, "x", columns=2, scale=1, gap=2)
    sheet = np.asarray(Image.open(BytesIO(strip.png)))
    assert sheet.shape == (12, 16, 4)
    expected = (pictures[1] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[:5, 9:16, :3], expected)
    assert (sheet[7:, 9:, 3] == 0).all()  # there is no fourth picture


def test_change_is_white_where_nothing_changed():
    same = torch.rand(1, 3, 4, 4)
    assert figures.change(same, same).min() > 0.9
    other = same.clone()
    other[..., 0, 0] = 1 - other[..., 0, 0].round()
    assert figures.change(same, other)[0, 1:, 0, 0].max() < 0.95
    with pytest.raises(ValueError, match="cannot be compared"):
        figures.change(same, torch.rand(1, 3, 5, 5))


def test_the_letters_of_a_long_name_shrink_until_it_fits_its_panel():
    name = "mediator-schedule, not distilled"
    size = fitted(name, 1.6, 9.5)
    assert 0.66 * len(name) * size / 72 == pytest.approx(1.6)
    assert fitted("teacher", 1.6, 9.5) == 9.5


def test_a_grid_with_room_for_more_pictures_is_narrower():
    wide, narrow = (figures.grid({"teacher": torch.rand(2, 3, 8, 8)}, room=room) for room in (4, 8))
    assert narrow.size[0] < wide.size[0]


def test_a_caption_is_wrapped_to_its_picture_and_a_class_keeps_its_two_lines():
    caption = "a small blue heart below a large yellow cross on black stripes"
    lines = stacked(caption, 0.7).split("\n")
    assert " ".join(lines) == caption
    assert max(map(len, lines)) <= 0.7 / 0.062
    assert stacked("red ring", 0.1) == "red\nring"
    pictures = {"teacher": torch.rand(1, 3, 8, 8)}
    taller, usual = (figures.grid(pictures, [title], room=6) for title in (caption, "red ring"))
    assert taller.size[1] > usual.size[1] + 100  # room for the lines, not smaller pictures


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5, 5)])
def test_an_array_that_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match="pictures have shape"):
        figures.strip(torch.rand(shape), "x")


def test_a_line_of_one_size_has_no_exponent():
    timings = [{"operator": name, "tokens": n, "seconds": s} for name, n, s in SIZES]
    alt = figures.speed(timings, LOOKS, "dense").alt
    assert "dense 40 ms at 256 tokens, exponent 1.50" in alt
    assert "clear 1 ms at 64 tokens." in alt


SIZES = (("dense", 64, 5e-3), ("dense", 256, 40e-3), ("clear", 64, 1e-3), ("clear", 256, None))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1234, "1,230"),
        (12345, "12.3 k"),
        (1.5e7, "15 M"),
        (2e9, "2 G"),
        (None, "none"),
        (1e-7, "1.0e-07"),
    ],
)
def test_numbers_read_as_a_person_writes_them(value, text):
    assert short(value) == text


def test_a_measure_without_a_number_is_refused():
    with pytest.raises(ValueError, match="similarity"):
        figures.heatmap(
            [[None, None]], rows=["0"], columns=["a", "b"], title="similarity", x="noise", y="layer"
        )


def test_lines_at_zero_are_drawn_without_a_warning(recwarn):
    figures.by_noise([0.1, 0.9], {"clear": [0.0, 0.0]}, LOOKS, "error")
    assert not [warning for warning in recwarn if "log" in str(warning.message)]


@pytest.mark.parametrize(("values", "fewest"), [((0.31, 0.34), 2), ((0.02, 50.0), 3)])
def test_a_logarithmic_axis_has_numbers_within_a_decade_too(values, fewest):
    _, axis = canvas.new_figure()
    axis.set_yscale("log")
    axis.plot(values, values)
    curves._number(axis.yaxis)
    low, high = axis.get_ylim()
    labels = [label for place, label in _numbered(axis.yaxis) if low <= place <= high]
    assert len(set(labels)) == len(labels) >= fewest


def _numbered(axis):
    """Return the ticks of an axis with what is written beside them."""
    places = axis.get_majorticklocs()
    return zip(places, axis.get_major_formatter().format_ticks(places), strict=True)


# What cannot be drawn


NAN, INF = float("nan"), float("inf")
POINT = {"name": "clear", "x": 2.0, "y": 1.0}
FRAMES = np.zeros((2, 3, 4, 4))


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: figures.strip(FRAMES[:0], "none"), r"no pictures to draw: .*\(0, 3, 4, 4\)"),
        (lambda: figures.strip(FRAMES * NAN, "none"), "96 of 96 values of pictures are not finite"),
        (lambda: figures.strip(FRAMES + INF, "none"), "not finite"),
        (lambda: figures.grid({}), "no rows of pictures"),
        (lambda: figures.grid({"a": FRAMES[:0]}), "no pictures to draw"),
        (lambda: figures.blocks({}, ["a"]), "no teachers to draw"),
        (lambda: figures.blocks({"t": {}}, ["a"]), "no named pictures of t"),
        (lambda: scatter([]), "no points to draw"),
        (lambda: scatter([{**POINT, "y": NAN}]), "y of clear is nan; it must be finite"),
        (lambda: scatter([{**POINT, "x": "2"}]), "x of clear is '2'; it must be a number"),
        (lambda: scatter([{**POINT, "low": INF, "high": 1}]), "low of clear is inf"),
        (lambda: scatter([{**POINT, "x": 0}]), "no points to draw"),
        (lambda: figures.training({}, {}), "no curves to draw"),
        (lambda: figures.training({"a": {"step": [], "loss": []}}, {}), "numbers in step of"),
        (lambda: figures.training({"a": {"step": [1, 2], "loss": [1]}}, {}), "loss has 1"),
        (lambda: figures.training({"a": {"step": [1], "loss": [NAN]}}, {}), r"loss\[0\] is nan"),
        (lambda: figures.by_noise([0.1], {}, {}, "y"), "no lines to draw"),
        (lambda: figures.by_noise([0.1], {"a": [1, 2]}, {}, "y"), "a has 2"),
        (lambda: figures.by_noise([0.1], {"a": [INF]}, {}, "y"), r"a\[0\] is inf"),
        (lambda: figures.bars({}, {}, "x"), "no students to draw"),
        (lambda: figures.bars({"a": {"after": NAN}}, {}, "x"), r"x of a\[0\] is nan"),
        (lambda: figures.speed([], {}, "dense"), "no times to draw"),
        (lambda: figures.speed([{**TIMINGS[0], "seconds": INF}], {}, "dense"), "is inf"),
        (lambda: figures.speed([{**TIMINGS[0], "seconds": -1}], {}, "dense"), "must be above 0"),
        (lambda: heatmap([[1, 2]]), r"has shape \(1, 2\).*names for \(1, 1\)"),
        (lambda: heatmap([[INF]]), "infinite number"),
        (lambda: heatmap([[1], [1, 2]]), "no table of numbers"),
        (lambda: figures.confusion([[1, 2]], ["a"]), r"has shape \(1, 2\)"),
        (lambda: figures.confusion([["x"]], ["a"]), "no table of numbers"),
        (lambda: figures.confusion([[-1]], ["a"]), "a count that is no number of 0 or more"),
        (lambda: figures.confusion([[NAN]], ["a"]), "a count that is no number of 0 or more"),
        (lambda: figures.attention_over(FRAMES[0], {}, 0), "no maps to draw"),
        (lambda: figures.attention_over(FRAMES[0], {"a": np.eye(2)}, 4), "token 4"),
        (lambda: figures.attention_over(FRAMES[0], {"a": np.eye(2) * NAN}, 0), "not finite"),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_drawn_is_named(draw, says):
    with pytest.raises(ValueError, match=says):
        draw()


def scatter(points, **options):
    return figures.quality_cost(points, x="cost", y="error", **options)


def heatmap(values):
    return figures.heatmap(values, rows=["a"], columns=["b"], title="share", x="x", y="y")


def test_one_picture_is_a_figure():
    assert figures.grid({"teacher": FRAMES[:1]}).size[0] > 0
    assert figures.strip(FRAMES[0], "one").size == (8, 8)


def test_a_point_that_a_log_axis_lacks_is_named_in_the_alt_text(recwarn):
    zero = {"name": "exact", "x": 1.0, "y": 0.0}
    picture = scatter([POINT, zero], log_y=True)
    assert "without exact, at 0 or below on a log axis" in picture.alt
    assert "clear 1 at 2" in picture.alt
    assert not recwarn
    assert "without" not in scatter([POINT, zero]).alt
