"""Look into teacher and student while they draw: plain functions that return data, and one widget that holds them.

- `trace` draws one picture and keeps what the model believed at every step and what it was given to believe it from.
- `attention` asks one layer whom one token of the picture attends to, at one of those steps. A UNet's deeper levels
  have fewer tokens: asked is then the one that lies over the same place.
- `Explorer` is the handle: menus, sliders, and the picture as a field of tokens to click on. It holds no logic.
- A student that has not been distilled here can still be looked at: the teacher converted, untrained.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, project, sampling, world
from linattn.attention.grid import Grid
from linattn.report import figures
from linattn.report.picture import Picture

UNTRAINED = ", not distilled"
SHARED = ("img_ids", "txt_ids")  # arguments of a forward that have no row a picture
CAPTIONS = 24  # that a menu offers


@dataclass(frozen=True)
class Trace:
    """One picture as it came about; step 0 is the first prediction from pure noise."""

    label: int | str  # the class or the caption that was asked for
    seed: int
    beliefs: Tensor  # (steps, 3, side, side): the finished picture as the model expects it at each step
    inputs: tuple[dict[str, Any], ...]  # what the model was called with at each step, without guidance's second half
    grid: Grid
    levels: tuple[float, ...]  # of noise, one a step

    @property
    def steps(self) -> int:
        return len(self.inputs)

    def noise(self, step: int) -> float:
        return self.levels[step]


def trace(
    teacher: Any,
    label: int | str,
    *,
    seed: int = 0,
    model: nn.Module | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> Trace:
    """Draw one picture of a class or a caption; the same seed gives the same noise to every model."""
    source = sampling.Source.of(teacher, model)
    beliefs, inputs = [], []
    handle = source.model.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(first_row(module, args, kwargs)), with_kwargs=True
    )
    try:
        sampling.draw_latents(
            teacher, [label] if isinstance(label, str) else torch.tensor([label]), seed=seed, steps=steps, size=size,
            model=model, callback=lambda step, latents, clean: beliefs.append(clean.detach().float().cpu()),
        )  # fmt: skip
    finally:
        handle.remove()
    read = families.family(source.model).read
    grid, *_ = read(source.model, inputs[0])
    levels = tuple(float(read(source.model, given)[1][0]) for given in inputs)
    return Trace(label, seed, sampling.decode(teacher, torch.cat(beliefs)), tuple(inputs), grid, levels)


def first_row(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's tensors by name, of the first picture alone: guidance's empty half comes after the asked one."""
    return _first_row(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _first_row(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of SDXL and PixArt hold a dictionary of their own: sizes, pooled captions."""
    found: dict[str, Any] = {}
    for name, each in given.items():
        if isinstance(each, Tensor):
            kept = each if each.ndim == 0 or name in SHARED else each[:1]
            found[name] = kept.detach().clone()  # a copy: the loop may write in place
        elif isinstance(each, Mapping):
            found[name] = _first_row(each)
    return found


@torch.no_grad()
def attention(model: nn.Module, trace: Trace, step: int, layer: int, token: int) -> Tensor:
    """Whom `token` attends to, (heads, height, width): one row of the layer's map, for what the model saw at `step`."""
    every = families.layers(model)
    _check("step", step, trace.steps)
    _check("layer", layer, len(every))
    _check("token", token, trace.grid.picture)
    with sampling.evaluating(model), families.capture(model, detach=True) as seen:
        model(**trace.inputs[step])
    here = seen[layer]
    grid = here["grid"]
    maps = families.attention_map(every[layer], here["input"], grid, here["noise"], **here["more"])
    row = maps[0, :, grid.text + place(token, trace.grid, grid), grid.text :]  # (heads, picture)
    return row.reshape(len(row), grid.height, grid.width).float().cpu()


def place(token: int, grid: Grid, other: Grid) -> int:
    """The token of another grid that lies over the middle of this one."""
    row, column = divmod(token, grid.width)
    row = (2 * row + 1) * other.height // (2 * grid.height)
    column = (2 * column + 1) * other.width // (2 * grid.width)
    return row * other.width + column


def head(weights: Tensor, number: int | None) -> Tensor:
    """One head of `attention`'s answer, or the mean of all: (height, width). A student may have fewer heads."""
    return weights.mean(0) if number is None else weights[min(number, len(weights) - 1)]


def _check(what: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        raise ValueError(f"{what} {number} does not exist: there are {count}, from 0 to {count - 1}")


def distance(first: Trace, second: Trace) -> list[float]:
    """Mean squared difference of the two beliefs, step by step."""
    return (first.beliefs - second.beliefs).square().mean((1, 2, 3)).tolist()


def token_colours(picture: Tensor, grid: Grid) -> list[str]:
    """The mean colour of each token's patch as #rrggbb, row by row."""
    cells = torch.nn.functional.adaptive_avg_pool2d(picture[None].float(), (grid.height, grid.width))[0]
    values = (cells.clamp(0, 1) * 255).round().int().flatten(1).T.tolist()  # (tokens, 3)
    return ["#" + "".join(f"{channel:02x}" for channel in value) for value in values]


def choices(teacher: Any) -> list[tuple[str, int | str]]:
    """What can be asked for, as words and value: classes, or captions of one thing and of two in turn."""
    if getattr(getattr(teacher, "pipe", teacher), "tokenizer", None) is not None:
        captions = [world.scene(0, number, 1 + number % 2).caption for number in range(CAPTIONS)]
        return [(caption, caption) for caption in captions]
    names = teacher.card.get("labels") or range(teacher.classes)
    return [(str(name), number) for number, name in enumerate(names)]


# Students ------------------------------------------------------------------------------------------------------------


def students(entries: Mapping[str, Any] | None = None, teacher: str | None = None) -> list[str]:
    """What can be looked at: the distilled students there are, then every student converted; controls come last.

    `teacher` is the name of one of `teachers()`: its students alone, or, if no role names it, all of them converted.
    """
    entries = _entries() if entries is None else entries
    roles = [role for role, name in _named().items() if name == teacher] if teacher else []
    own = [name for name in entries if teacher is None or entries[name].teacher in roles]
    names = sorted(own or entries, key=lambda name: entries[name].operator == "softmax")
    trained = [name for name in names if own and project.student(name).is_dir()]
    return trained + [name + UNTRAINED for name in names]


def student(name: str, teacher: Any, entries: Mapping[str, Any] | None = None) -> nn.Module:
    """A copy of the teacher's model turned into a student; the teacher stays as it is.

    One that is not distilled is the report's: of the first seed that the student is distilled for.
    """
    from linattn import surgery
    from linattn.params import known
    from linattn.surgery.conversion import converted

    entries = _entries() if entries is None else entries
    short = known(name.removesuffix(UNTRAINED), entries, "student")
    model = sampling.Source.of(teacher).model
    if name.endswith(UNTRAINED):
        return converted(model, entries[short], _first_seed(short))
    return surgery.load(copy.deepcopy(model), project.student(short)).eval().requires_grad_(False)


def _first_seed(name: str) -> int:
    from linattn import params

    settings = params.load()
    return (settings.recipe(name) if name in settings.students else settings.distill).seeds[0]


def _entries() -> Mapping[str, Any]:
    from linattn import params

    return params.load().students


def _named() -> dict[str, str]:
    """Role -> the name of its folder."""
    from linattn import params

    return {role: entry.source.rpartition("/")[2] for role, entry in params.load().teachers.items()}


def teachers() -> dict[str, str]:
    """Folders under data/teachers/, by name."""
    folder = project.ROOT / "data" / "teachers"
    found = {path.parent.name: str(path.parent) for path in sorted(folder.glob("*/model_index.json"))}
    if not found:
        raise FileNotFoundError(
            f"no teacher in {folder}; run the notebook 01_teacher, or check out the folder from Git"
        )
    return found


# Figures -------------------------------------------------------------------------------------------------------------


def beside(teacher: Trace, student: Trace, step: int, names: tuple[str, str] = ("teacher", "student")) -> Picture:
    """What both expect the finished picture to be at one step, and where they differ."""
    return figures.difference(teacher.beliefs[step], student.beliefs[step], names)


def looking(
    models: Mapping[str, nn.Module],
    traces: Mapping[str, Trace],
    step: int,
    layer: int,
    token: int,
    number: int | None = None,
) -> Picture:
    """Whom a token attends to in each model, over what that model expects to draw."""
    first = next(iter(traces.values()))
    rows = {name: head(attention(model, traces[name], step, layer, token), number) for name, model in models.items()}
    shown = next(iter(rows.values()))  # a level's own grid
    query = place(token, first.grid, Grid(*shown.shape))
    return figures.attention_over(first.beliefs[step], {name: row.numpy() for name, row in rows.items()}, query)


# The widget ----------------------------------------------------------------------------------------------------------


class Explorer:
    """Menus and sliders over the functions above; shows itself as the last value of a cell.

    `teachers` maps a name to a folder or to a loaded teacher; `offered` are students for each of them, or
    `offered(name)` those of one; `build(name, teacher)` makes a student.
    """

    def __init__(
        self,
        teachers: Mapping[str, Any],
        offered: Sequence[str] | Callable[[str], Sequence[str]],
        build: Callable[..., nn.Module],
        steps: int = 12,
    ):
        import ipywidgets as w

        self.teachers, self.build, self.steps = dict(teachers), build, steps
        self.offered = offered if callable(offered) else lambda name: offered
        self.token: int | None = None
        self._students: dict[tuple[str, str], nn.Module] = {}
        wide = {"style": {"description_width": "5rem"}}
        slider = {"continuous_update": False, **wide}
        self.teacher = w.Dropdown(options=list(teachers), description="teacher", **wide)
        self.student = w.Dropdown(description="student", **wide)
        self.label = w.Dropdown(description="picture of", **wide)
        self.seed = w.BoundedIntText(0, 0, 9999, description="seed", **wide)
        self.step = w.IntSlider(steps - 1, 0, steps - 1, description="step", **slider)
        self.layer = w.IntSlider(0, 0, 0, description="layer", **slider)
        self.head = w.Dropdown(description="head", **wide)
        self.pictures, self.maps, self.field = w.HTML(), w.HTML(), w.GridBox()
        rows = (
            [self.teacher, self.student, self.label, self.seed], [self.step, self.pictures],
            [w.HTML("Click a token to see whom it attends to:"), self.field], [self.layer, self.head, self.maps],
        )  # fmt: skip
        self.widget = w.VBox([w.VBox(row) for row in rows])
        self._meet()
        self.teacher.observe(self._meet, "value")
        for control in (self.student, self.label, self.seed):
            control.observe(self._draw, "value")
        for control in (self.step, self.layer, self.head):
            control.observe(self._show, "value")

    @property
    def source(self) -> Any:
        """The chosen teacher, loaded when it is first needed."""
        name = self.teacher.value
        if isinstance(self.teachers[name], str):
            from linattn import teachers

            self.teachers[name] = teachers.load(self.teachers[name])
        return self.teachers[name]

    def _meet(self, change: Any = None) -> None:
        """Another teacher: its students, classes or captions, layers and heads."""
        layers = families.layers(sampling.Source.of(self.source).model)
        most = max(layer.shape.heads for layer in layers)
        self._meeting = True  # each of these lines is heard of; what is shown must wait for the last
        self.student.options = list(self.offered(self.teacher.value))
        self.label.options = choices(self.source)
        self.head.options = [("mean of all", None), *((str(i), i) for i in range(most))]
        for menu in (self.student, self.label, self.head):
            menu.index = 0  # a menu that was empty has chosen nothing yet
        self.layer.max = len(layers) - 1
        self._meeting = False
        self._draw()

    def _draw(self, change: Any = None) -> None:
        """Both pictures anew: another student, class or seed."""
        if self._meeting:
            return
        key = (self.teacher.value, self.student.value)
        if key not in self._students:
            self._students[key] = self.build(self.student.value, self.source)
        self.models = {"teacher": sampling.Source.of(self.source).model, self.student.value: self._students[key]}
        self.traces = {
            name: trace(self.source, self.label.value, seed=self.seed.value, steps=self.steps, model=model)
            for name, model in self.models.items()
        }
        if self.token is None or self.token >= self.traces["teacher"].grid.picture:
            self.token = self._middle()
        self._show()

    def _middle(self) -> int:
        grid = self.traces["teacher"].grid
        return grid.height // 2 * grid.width + grid.width // 2

    def _show(self, change: Any = None) -> None:
        if self._meeting:
            return
        first, second = self.traces.values()
        names = tuple(self.traces)
        self.pictures.value = beside(first, second, self.step.value, names).html()
        self._paint(first)
        picture = looking(self.models, self.traces, self.step.value, self.layer.value, self.token, self.head.value)
        self.maps.value = picture.html()

    def _paint(self, shown: Trace) -> None:
        """The picture as buttons, one a token; the chosen one is marked."""
        import ipywidgets as w

        grid, colours = shown.grid, token_colours(shown.beliefs[self.step.value], shown.grid)
        if len(self.field.children) != grid.picture:
            cell = w.Layout(width="18px", height="18px", margin="0", padding="0")
            self.field.layout = w.Layout(grid_template_columns=f"repeat({grid.width}, 18px)", grid_gap="0")
            self.field.children = [self._button(w, cell, token, grid) for token in range(grid.picture)]
        for token, (button, colour) in enumerate(zip(self.field.children, colours, strict=True)):
            button.style.button_color = colour
            # A blank, since the browser does not redraw a button whose text has become nothing.
            button.description = "●" if token == self.token else " "

    def _button(self, w: Any, cell: Any, token: int, grid: Grid) -> Any:
        row, column = divmod(token, grid.width)
        button = w.Button(layout=cell, tooltip=f"row {row + 1}, column {column + 1}")
        button.on_click(lambda _: self.choose(token))
        return button

    def choose(self, token: int) -> None:
        """Look from this token on."""
        _check("token", token, self.traces["teacher"].grid.picture)
        self.token = token
        self._show()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


def explore(names: Iterable[str] | None = None, steps: int = 12) -> Explorer:
    """The widget for the teachers of data/teachers/ and the students of params.yaml."""
    offered = list(names) if names else lambda teacher: students(teacher=teacher)
    return Explorer(teachers(), offered, student, steps)
