"""Look into teacher and student while they draw: plain functions that return data, and one widget
that calls them.

- `trace` draws one picture and keeps the model's inputs and its predicted finished picture at every
  step.
- `attention` returns the attention of one token of the picture in one layer, at one of those steps.
  A UNet's deeper levels have fewer tokens: the query is then the token that covers the same
  position.
- `Explorer` is the widget: menus, sliders, and the picture as a field of tokens to click on. It
  holds no logic.
- A student that has not been distilled here can still be explored: it is the teacher converted,
  untrained.
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
from linattn.names import known
from linattn.report import figures
from linattn.report.picture import Picture

UNTRAINED = ", not distilled"
SHARED = ("img_ids", "txt_ids")  # arguments of a forward that have no batch dimension
CAPTIONS = 24  # number of captions in a menu


@dataclass(frozen=True)
class Trace:
    """Record how one picture was drawn; step 0 is the first prediction from pure noise."""

    label: int | str  # the class or the caption of the picture
    seed: int
    # (steps, 3, side, side): the finished picture that the model predicts at each step
    beliefs: Tensor
    # the model's arguments at each step, without guidance's unconditional half
    inputs: tuple[dict[str, Any], ...]
    grid: Grid
    levels: tuple[float, ...]  # the noise level of each step

    @property
    def steps(self) -> int:
        return len(self.inputs)

    def noise(self, step: int) -> float:
        """Return the noise level of a step."""
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
        lambda module, args, kwargs: inputs.append(first_row(module, args, kwargs)),
        with_kwargs=True,
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
    levels = tuple(float(read(source.model, kwargs)[1][0]) for kwargs in inputs)
    return Trace(
        label, seed, sampling.decode(teacher, torch.cat(beliefs)), tuple(inputs), grid, levels
    )


def first_row(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's tensors by name, for the first picture alone.

    With guidance this is the conditional half of the batch: the unconditional half comes after it.
    """
    return _first_row(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def _first_row(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the first row of every tensor; SDXL and PixArt nest a dictionary of sizes and pooled
    captions.
    """
    first: dict[str, Any] = {}
    for name, argument in arguments.items():
        if isinstance(argument, Tensor):
            kept = argument if argument.ndim == 0 or name in SHARED else argument[:1]
            first[name] = kept.detach().clone()  # copied, because the loop may write in place
        elif isinstance(argument, Mapping):
            first[name] = _first_row(argument)
    return first


@torch.no_grad()
def attention(model: nn.Module, trace: Trace, step: int, layer: int, token: int) -> Tensor:
    """Return the attention weights of `token`, (heads, height, width), with the model's inputs at
    `step`.

    The weights are one row of the layer's attention map.
    """
    layers = families.layers(model)
    _check("step", step, trace.steps)
    _check("layer", layer, len(layers))
    _check("token", token, trace.grid.picture)
    with sampling.evaluating(model), families.capture(model, detach=True) as captured:
        model(**trace.inputs[step])
    call = captured[layer]
    grid = call["grid"]
    maps = families.attention_map(layers[layer], call["input"], grid, call["noise"], **call["more"])
    row = maps[0, :, grid.text + place(token, trace.grid, grid), grid.text :]  # (heads, picture)
    return row.reshape(len(row), grid.height, grid.width).float().cpu()


def place(token: int, grid: Grid, other: Grid) -> int:
    """Return the token of another grid that covers the middle of this token."""
    row, column = divmod(token, grid.width)
    row = (2 * row + 1) * other.height // (2 * grid.height)
    column = (2 * column + 1) * other.width // (2 * grid.width)
    return row * other.width + column


def head(weights: Tensor, number: int | None) -> Tensor:
    """Return one head of the weights from `attention`, or the mean over heads where `number` is
    None: (height, width).

    The last head stands for a number that is too high, since a student may have fewer heads than
    its teacher.
    """
    return weights.mean(0) if number is None else weights[min(number, len(weights) - 1)]


def _check(what: str, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{what} {index} does not exist: there are {count}, from 0 to {count - 1}")


def distance(first: Trace, second: Trace) -> list[float]:
    """Return the mean squared difference of the two predicted pictures at every step."""
    return (first.beliefs - second.beliefs).square().mean((1, 2, 3)).tolist()


def token_colours(picture: Tensor, grid: Grid) -> list[str]:
    """Return the mean colour of each token's patch as #rrggbb, row by row."""
    cells = torch.nn.functional.adaptive_avg_pool2d(
        picture[None].float(), (grid.height, grid.width)
    )[0]
    values = (cells.clamp(0, 1) * 255).round().int().flatten(1).T.tolist()  # (tokens, 3)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in values]


def choices(teacher: Any) -> list[tuple[str, int | str]]:
    """Return what the teacher can draw, as text and value: classes, or captions of one thing and of
    two in turn.
    """
    if getattr(getattr(teacher, "pipe", teacher), "tokenizer", None) is not None:
        captions = [world.scene(0, index, 1 + index % 2).caption for index in range(CAPTIONS)]
        return [(caption, caption) for caption in captions]
    names = teacher.card.get("labels") or range(teacher.classes)
    return [(str(name), label) for label, name in enumerate(names)]


# Students
# ---------------------------------------------------------------------------------------------


def students(entries: Mapping[str, Any] | None = None, teacher: str | None = None) -> list[str]:
    """Name the students to choose from: first those that were distilled here, then every student
    converted.

    Controls come last in both groups. `teacher` is the name of one of `teachers()`, which limits
    the choice to its students; where no role names this teacher, all students are offered,
    converted.
    """
    entries = _entries() if entries is None else entries
    roles = [role for role, name in _folder_names().items() if name == teacher] if teacher else []
    of_teacher = [name for name in entries if teacher is None or entries[name].teacher in roles]
    names = sorted(of_teacher or entries, key=lambda name: entries[name].operator == "softmax")
    trained = [name for name in names if of_teacher and project.student(name).is_dir()]
    return trained + [name + UNTRAINED for name in names]


def student(name: str, teacher: Any, entries: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a copy of the teacher's model as a student; the teacher does not change.

    A student that is not distilled is the report's: it is converted with the first seed of its
    distillation.
    """
    from linattn import surgery
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


def _folder_names() -> dict[str, str]:
    """Map each role to the name of its teacher's folder."""
    from linattn import params

    return {role: entry.source.rpartition("/")[2] for role, entry in params.load().teachers.items()}


def teachers() -> dict[str, str]:
    """Return the teachers' folders under data/teachers/, by name."""
    folder = project.ROOT / "data" / "teachers"
    folders = {
        path.parent.name: str(path.parent) for path in sorted(folder.glob("*/model_index.json"))
    }
    if not folders:
        raise FileNotFoundError(
            f"no teacher in {folder}; run the notebook 01_teacher, or check out the folder from Git"
        )
    return folders


# Figures
# ---------------------------------------------------------------------------------------------


def beside(
    teacher: Trace, student: Trace, step: int, names: tuple[str, str] = ("teacher", "student")
) -> Picture:
    """Show the finished picture that each predicts at one step, and the difference."""
    return figures.difference(teacher.beliefs[step], student.beliefs[step], names)


def looking(
    models: Mapping[str, nn.Module],
    traces: Mapping[str, Trace],
    step: int,
    layer: int,
    token: int,
    number: int | None = None,
) -> Picture:
    """Show the attention of a token in each model, over the picture that the first model predicts
    at `step`.
    """
    first = next(iter(traces.values()))
    weights = {}
    for name, model in models.items():
        weights[name] = head(attention(model, traces[name], step, layer, token), number)
    level = Grid(*next(iter(weights.values())).shape)  # a UNet's level has a grid of its own
    query = place(token, first.grid, level)
    return figures.attention_over(
        first.beliefs[step], {name: row.numpy() for name, row in weights.items()}, query
    )


# The widget
# ---------------------------------------------------------------------------------------------


class Explorer:
    """Offer menus and sliders over the functions above, shown as the last value of a cell.

    `teachers` maps a name to a folder or to a loaded teacher. `offered` lists the students of all
    teachers, or `offered(name)` those of one. `build(name, teacher)` makes a student.
    """

    def __init__(
        self,
        teachers: Mapping[str, Any],
        offered: Sequence[str] | Callable[[str], Sequence[str]],
        build: Callable[..., nn.Module],
        steps: int = 12,
    ):
        import ipywidgets as widgets

        self.teachers, self.build, self.steps = dict(teachers), build, steps
        self.offered = offered if callable(offered) else lambda name: offered
        self.token: int | None = None
        self._students: dict[tuple[str, str], nn.Module] = {}
        layout = {"style": {"description_width": "5rem"}}
        slider = {"continuous_update": False, **layout}
        self.teacher = widgets.Dropdown(options=list(teachers), description="teacher", **layout)
        self.student = widgets.Dropdown(description="student", **layout)
        self.label = widgets.Dropdown(description="picture of", **layout)
        self.seed = widgets.BoundedIntText(0, 0, 9999, description="seed", **layout)
        self.step = widgets.IntSlider(steps - 1, 0, steps - 1, description="step", **slider)
        self.layer = widgets.IntSlider(0, 0, 0, description="layer", **slider)
        self.head = widgets.Dropdown(description="head", **layout)
        self.pictures, self.maps, self.field = widgets.HTML(), widgets.HTML(), widgets.GridBox()
        hint = widgets.HTML("Click a token to see whom it attends to:")
        rows = (
            [self.teacher, self.student, self.label, self.seed], [self.step, self.pictures],
            [hint, self.field], [self.layer, self.head, self.maps],
        )  # fmt: skip
        self.widget = widgets.VBox([widgets.VBox(row) for row in rows])
        self._change_teacher()
        self.teacher.observe(self._change_teacher, "value")
        for control in (self.student, self.label, self.seed):
            control.observe(self._draw, "value")
        for control in (self.step, self.layer, self.head):
            control.observe(self._show, "value")

    @property
    def source(self) -> Any:
        """Return the chosen teacher, which is loaded when it is first needed."""
        name = self.teacher.value
        if isinstance(self.teachers[name], str):
            from linattn import teachers

            self.teachers[name] = teachers.load(self.teachers[name])
        return self.teachers[name]

    def _change_teacher(self, change: Any = None) -> None:
        """Fill the menus with the teacher's students, classes or captions, layers and heads, and
        draw.
        """
        layers = families.layers(sampling.Source.of(self.source).model)
        heads = max(layer.shape.heads for layer in layers)
        # each of these lines triggers an observer, which must wait for the last line
        self._filling = True
        self.student.options = list(self.offered(self.teacher.value))
        self.label.options = choices(self.source)
        self.head.options = [("mean of all", None), *((str(i), i) for i in range(heads))]
        for menu in (self.student, self.label, self.head):
            menu.index = 0  # a menu that was empty has nothing selected yet
        self.layer.max = len(layers) - 1
        self._filling = False
        self._draw()

    def _draw(self, change: Any = None) -> None:
        """Draw both pictures again for another student, class or seed."""
        if self._filling:
            return
        key = (self.teacher.value, self.student.value)
        if key not in self._students:
            self._students[key] = self.build(self.student.value, self.source)
        self.models = {
            "teacher": sampling.Source.of(self.source).model,
            self.student.value: self._students[key],
        }
        self.traces = {
            name: trace(
                self.source, self.label.value, seed=self.seed.value, steps=self.steps, model=model
            )
            for name, model in self.models.items()
        }
        if self.token is None or self.token >= self.traces["teacher"].grid.picture:
            self.token = self._middle()
        self._show()

    def _middle(self) -> int:
        grid = self.traces["teacher"].grid
        return grid.height // 2 * grid.width + grid.width // 2

    def _show(self, change: Any = None) -> None:
        """Show pictures, tokens and attention for the chosen step, layer, head and token."""
        if self._filling:
            return
        first, second = self.traces.values()
        names = tuple(self.traces)
        self.pictures.value = beside(first, second, self.step.value, names).html()
        self._paint(first)
        picture = looking(
            self.models, self.traces, self.step.value, self.layer.value, self.token, self.head.value
        )
        self.maps.value = picture.html()

    def _paint(self, trace: Trace) -> None:
        """Paint the picture as buttons, one for each token, and mark the chosen token."""
        import ipywidgets as widgets

        grid, colours = trace.grid, token_colours(trace.beliefs[self.step.value], trace.grid)
        if len(self.field.children) != grid.picture:
            cell = widgets.Layout(width="18px", height="18px", margin="0", padding="0")
            self.field.layout = widgets.Layout(
                grid_template_columns=f"repeat({grid.width}, 18px)", grid_gap="0"
            )
            self.field.children = [self._button(cell, token, grid) for token in range(grid.picture)]
        for token, (button, colour) in enumerate(zip(self.field.children, colours, strict=True)):
            button.style.button_color = colour
            # A blank, because the browser does not redraw a button whose text becomes empty.
            button.description = "●" if token == self.token else " "

    def _button(self, cell: Any, token: int, grid: Grid) -> Any:
        import ipywidgets as widgets

        row, column = divmod(token, grid.width)
        button = widgets.Button(layout=cell, tooltip=f"row {row + 1}, column {column + 1}")
        button.on_click(lambda _: self.choose(token))
        return button

    def choose(self, token: int) -> None:
        """Choose the token whose attention is shown."""
        _check("token", token, self.traces["teacher"].grid.picture)
        self.token = token
        self._show()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


def explore(names: Iterable[str] | None = None, steps: int = 12) -> Explorer:
    """Return the widget for the teachers of data/teachers/ and the students of params.yaml."""
    offered = list(names) if names else lambda teacher: students(teacher=teacher)
    return Explorer(teachers(), offered, student, steps)
