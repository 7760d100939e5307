"""Look into teacher and student while they draw: plain functions that return data, and one widget.

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

from linattn.explore.menu import choices, student, students, teachers
from linattn.explore.pictures import beside, looking, token_colours
from linattn.explore.tracing import Trace, distance, first_row, trace
from linattn.explore.weights import attention, covering, head
from linattn.explore.widget import Explorer, explore

__all__ = [
    "Explorer",
    "Trace",
    "attention",
    "beside",
    "choices",
    "covering",
    "distance",
    "explore",
    "first_row",
    "head",
    "looking",
    "student",
    "students",
    "teachers",
    "token_colours",
    "trace",
]
