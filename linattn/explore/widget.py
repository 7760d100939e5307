"""Offer the exploration as a widget: menus, sliders, and a field of tokens to click on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from linattn import families, sampling, teachers as pipelines
from linattn.attention.grid import Grid
from linattn.explore.menu import choices, student, students, teachers
from linattn.explore.pictures import beside, looking, token_colours
from linattn.explore.tracing import Trace, trace
from linattn.explore.weights import check
from linattn.reader import between, checked

CELL = "18px"


class Explorer:
    """Offer menus and sliders over the functions of this package, shown as a cell's last value.

    Args:
        teachers: maps a name to a folder or to a loaded teacher.
        offered: the students of all teachers, or a function from a teacher's name to its students.
        build: called as `build(name, teacher)`; returns a student.
        steps: steps of a draw.
    """

    models: dict[str, nn.Module]  # the teacher's and the student's
    traces: dict[str, Trace]

    def __init__(
        self,
        teachers: Mapping[str, Any],
        offered: Sequence[str] | Callable[[str], Sequence[str]],
        build: Callable[..., nn.Module],
        steps: int = 12,
    ):
        self.teachers, self.build, self.steps = dict(teachers), build, steps
        self.offered = offered if callable(offered) else lambda name: offered
        self.token = -1  # none yet
        self._students: dict[tuple[str, str], nn.Module] = {}
        self._make_controls()
        self._change_teacher()
        self._observe()

    def _make_controls(self) -> None:
        import ipywidgets as widgets

        layout = {"style": {"description_width": "5rem"}}
        slider = {"continuous_update": False, **layout}
        last = self.steps - 1
        self.teacher = widgets.Dropdown(
            options=list(self.teachers), description="teacher", **layout
        )
        self.student = widgets.Dropdown(description="student", **layout)
        self.label = widgets.Dropdown(description="picture of", **layout)
        self.seed = widgets.BoundedIntText(0, 0, 9999, description="seed", **layout)
        self.step = widgets.IntSlider(last, 0, last, description="step", **slider)
        self.layer = widgets.IntSlider(0, 0, 0, description="layer", **slider)
        self.head = widgets.Dropdown(description="head", **layout)
        self.pictures, self.maps, self.field = widgets.HTML(), widgets.HTML(), widgets.GridBox()
        hint = widgets.HTML("Click a token to see whom it attends to:")
        lines = (
            [self.teacher, self.student, self.label, self.seed],
            [self.step, self.pictures],
            [hint, self.field],
            [self.layer, self.head, self.maps],
        )
        self.widget = widgets.VBox([widgets.VBox(line) for line in lines])

    def _observe(self) -> None:
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
            self.teachers[name] = pipelines.load(self.teachers[name])
        return self.teachers[name]

    def _change_teacher(self, change: Any = None) -> None:
        """Fill the menus with what the teacher has, and draw."""
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
        name = self.student.value
        self.models = {
            "teacher": sampling.Source.of(self.source).model,
            name: self._built(name),
        }
        self.traces = {key: self._traced(model) for key, model in self.models.items()}
        grid = self.traces["teacher"].grid
        if not 0 <= self.token < grid.picture:
            self.token = grid.height // 2 * grid.width + grid.width // 2
        self._show()

    def _built(self, name: str) -> nn.Module:
        """Return a student of the chosen teacher, which is built when it is first needed."""
        key = (self.teacher.value, name)
        if key not in self._students:
            self._students[key] = self.build(name, self.source)
        return self._students[key]

    def _traced(self, model: nn.Module) -> Trace:
        label, seed = self.label.value, self.seed.value
        return trace(self.source, label, seed=seed, steps=self.steps, model=model)

    def _show(self, change: Any = None) -> None:
        """Show pictures, tokens and attention for the chosen step, layer, head and token."""
        if self._filling:
            return
        step, names = self.step.value, ("teacher", self.student.value)
        first, second = self.traces.values()
        self.pictures.value = beside(first, second, step, names).html()
        self._paint(first)
        layer, head = self.layer.value, self.head.value
        self.maps.value = looking(self.models, self.traces, step, layer, self.token, head).html()

    def _paint(self, trace: Trace) -> None:
        """Paint the picture as buttons, one for each token, and mark the chosen token."""
        grid, colours = trace.grid, token_colours(trace.beliefs[self.step.value], trace.grid)
        if len(self.field.children) != grid.picture:
            self._fill_field(grid)
        for token, (button, colour) in enumerate(zip(self.field.children, colours, strict=True)):
            button.style.button_color = colour
            # A blank, because the browser does not redraw a button whose text becomes empty.
            button.description = "●" if token == self.token else " "

    def _fill_field(self, grid: Grid) -> None:
        import ipywidgets as widgets

        columns = f"repeat({grid.width}, {CELL})"
        self.field.layout = widgets.Layout(grid_template_columns=columns, grid_gap="0")
        layout = widgets.Layout(width=CELL, height=CELL, margin="0", padding="0")
        self.field.children = [self._button(layout, token, grid) for token in range(grid.picture)]

    def _button(self, layout: Any, token: int, grid: Grid) -> Any:
        import ipywidgets as widgets

        row, column = divmod(token, grid.width)
        button = widgets.Button(layout=layout, tooltip=f"row {row + 1}, column {column + 1}")
        button.on_click(lambda _: self.choose(token))
        return button

    def choose(self, token: int) -> None:
        """Choose the token whose attention is shown."""
        check("token", token, self.traces["teacher"].grid.picture)
        self.token = token
        self._show()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)


@checked(steps=between(1))
def explore(names: Iterable[str] | None = None, steps: int = 12) -> Explorer:
    """Return the widget for the teachers of data/teachers/ and the students of params.yaml.

    Args:
        names: students to offer; None offers those of params.yaml.
        steps: steps of a draw.
    """
    offered = list(names) if names else lambda teacher: students(teacher=teacher)
    return Explorer(teachers(), offered, student, steps)
