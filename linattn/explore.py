"""Look into teacher and student while they draw: plain functions that return data, and one widget that holds them.

- `trace` draws one picture and keeps what the model believed at every step and what it was given to believe it from.
- `attention` asks one layer whom one token of the picture attends to, at one of those steps.
- `Explorer` is the handle: menus, sliders, and the picture as a field of tokens to click on. It holds no logic.
- A student that has not been distilled here can still be looked at: the teacher converted, untrained.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, figures, project, sampling, surgery
from linattn.figures import Picture
from linattn.grid import Grid

UNTRAINED = ", not distilled"


@dataclass(frozen=True)
class Trace:
    """One picture as it came about; step 0 is the first prediction from pure noise."""

    label: int
    seed: int
    beliefs: Tensor  # (steps, 3, side, side): the finished picture as the model expects it at each step
    inputs: tuple[dict[str, Tensor], ...]  # what the model was called with at each step, without guidance's second half
    grid: Grid

    @property
    def steps(self) -> int:
        return len(self.inputs)

    def noise(self, step: int) -> float:
        return float(self.inputs[step]["timestep"].flatten()[0]) / 1000


def trace(
    teacher: Any,
    label: int,
    *,
    seed: int = 0,
    model: nn.Module | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> Trace:
    """Draw one picture of class `label`; the same seed gives the same noise to every model."""
    source = sampling.Source.of(teacher, model)
    beliefs, inputs = [], []

    def note(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        given = {name: kwargs[name][:1].detach().clone() for name in ("timestep", "class_labels")}
        inputs.append({"hidden_states": args[0][:1].detach().clone(), **given})

    handle = source.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        sampling.draw_latents(
            teacher, torch.tensor([label]), seed=seed, steps=steps, size=size, model=model,
            callback=lambda step, latents, clean: beliefs.append(clean.detach().float().cpu()),
        )  # fmt: skip
    finally:
        handle.remove()
    grid, _, _ = families.family(source.model).read(source.model, inputs[0])
    return Trace(label, seed, sampling.decode(teacher, torch.cat(beliefs)), tuple(inputs), grid)


@torch.no_grad()
def attention(model: nn.Module, trace: Trace, step: int, layer: int, token: int) -> Tensor:
    """Whom `token` attends to, (heads, height, width): one row of the layer's map, for what the model saw at `step`."""
    grid = trace.grid
    _check("step", step, trace.steps)
    _check("layer", layer, len(families.layers(model)))
    _check("token", token, grid.picture)
    with sampling.evaluating(model):
        maps = surgery.attention_map(model, layer, **trace.inputs[step])  # (1, heads, tokens, tokens)
    row = maps[0, :, grid.text + token, grid.text :]  # (heads, picture)
    return row.reshape(len(row), grid.height, grid.width).float().cpu()


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


# Students ------------------------------------------------------------------------------------------------------------


def students(entries: Mapping[str, Any] | None = None) -> list[str]:
    """What can be looked at: the distilled students there are, then every student converted; controls come last."""
    entries = _entries() if entries is None else entries
    names = sorted(entries, key=lambda name: entries[name].operator == "softmax")
    trained = [name for name in names if project.student(name).is_dir()]
    return trained + [name + UNTRAINED for name in names]


def student(name: str, teacher: Any, entries: Mapping[str, Any] | None = None) -> nn.Module:
    """A copy of the teacher's model turned into a student; the teacher stays as it is."""
    from linattn.params import known

    entries = _entries() if entries is None else entries
    short = known(name.removesuffix(UNTRAINED), entries, "student")
    model = copy.deepcopy(sampling.Source.of(teacher).model)
    if name.endswith(UNTRAINED):
        entry = entries[short]
        surgery.linearize(model, entry.operator, layers=entry.layers, initialise=entry.initialise, **entry.options)
    else:
        surgery.load(model, project.student(short))
    return model.eval().requires_grad_(False)


def _entries() -> Mapping[str, Any]:
    from linattn import params

    return params.load().students


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
    return figures.attention_over(first.beliefs[step], {name: row.numpy() for name, row in rows.items()}, token)


# The widget ----------------------------------------------------------------------------------------------------------


class Explorer:
    """Menus and sliders over the functions above; shows itself as the last value of a cell.

    `teachers` maps a name to a folder or to a loaded teacher; `build(name, teacher)` makes a student.
    """

    def __init__(
        self, teachers: Mapping[str, Any], choices: Sequence[str], build: Callable[..., nn.Module], steps: int = 12
    ):
        import ipywidgets as w

        self.teachers, self.build, self.steps = dict(teachers), build, steps
        self.token: int | None = None
        self._students: dict[tuple[str, str], nn.Module] = {}
        wide = {"style": {"description_width": "5rem"}}
        slider = {"continuous_update": False, **wide}
        self.teacher = w.Dropdown(options=list(teachers), description="teacher", **wide)
        self.student = w.Dropdown(options=list(choices), description="student", **wide)
        self.label = w.Dropdown(description="class", **wide)
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
        """Another teacher: its classes, layers and heads."""
        source = sampling.Source.of(self.source)
        layers = families.layers(source.model)
        names = source.card.get("labels") or range(source.classes)
        self._meeting = True  # each of these lines is heard of; what is shown must wait for the last
        self.label.options = [(str(name), number) for number, name in enumerate(names)]
        self.head.options = [("mean of all", None), *((str(i), i) for i in range(layers[0].shape.heads))]
        self.label.index = self.head.index = 0  # a menu that was empty has chosen nothing yet
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
    return Explorer(teachers(), list(names or students()), student, steps)
