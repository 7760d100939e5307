"""Hold an operator to its contract: for those who write one, and for this repository's tests.

    from linattn.testing import check_operator
    check_operator(MyOperator)     # raises one AssertionError that names everything that differs

or one test for each check:

    @pytest.mark.parametrize("check", checks(MyOperator), ids=str)
    def test_my_operator(check):
        check()
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from linattn.attention import OPERATORS, Operator
from linattn.testing import contract, students
from linattn.testing.form import Form, forms

# Checks of one form, by what they hold. They take a Form and raise an AssertionError.
CONTRACT = {
    "definition": contract.mix_is_its_definition,
    "map": contract.the_map_is_the_definition,
    "gradients": contract.gradients_are_those_of_the_definition,
    "precision": contract.half_precision_is_close,
    "autocast": contract.autocast_does_not_reach_the_core,
    "sizes": contract.sizes_may_alternate,
    "options": contract.options_build_the_same_operator,
    "copies": contract.copies_are_independent,
    "schedule": contract.a_scheduled_batch_is_each_picture_alone,
    "cost": contract.cost_is_what_is_multiplied,
    "density": contract.density_is_of_the_map,
    "memory": contract.no_tensor_is_as_large_as_the_map,
}
STUDENTS = {
    "layers": students.layers_are_the_definition,
    "folder": students.it_saves_restores_and_loads,
}
# Checks of all forms at once; they get the defaults.
ONCE = {
    "effect": contract.options_have_an_effect,
    "resume": students.a_training_resumes,
}


@dataclass(frozen=True)
class Check:
    """Hold one check of one form; `backbone` is a tiny model that it runs on."""

    name: str  # of CONTRACT, STUDENTS or ONCE
    form: Form  # the operator with its options
    backbone: str | None = None  # a tiny model to run on, where the check needs one

    def __str__(self) -> str:
        return "-".join(filter(None, (str(self.form), self.name, self.backbone)))

    def __call__(self) -> None:
        if self.name in CONTRACT:
            CONTRACT[self.name](self.form)
            return
        with registered(self.form.operator):
            if self.backbone is None:
                ONCE[self.name](self.form)
            else:
                STUDENTS[self.name](self.form, self.backbone)


def checks(operator: type[Operator]) -> list[Check]:
    """List every check of every form of an operator, on every family of backbones.

    Args:
        operator: the class to check; it need not be registered.
    """
    contract.check_class(operator)
    every = forms(operator)
    of_forms = [Check(name, form) for form in every for name in CONTRACT]
    of_students = [
        Check(name, form, backbone)
        for form in every
        for backbone in students.backbones(form)
        for name in STUDENTS
    ]
    once = [Check(name, every[0]) for name in ONCE]
    return [*of_forms, *of_students, *once]


def check_operator(
    operator: type[Operator], progress: Callable[[int, int], None] | None = None
) -> None:
    """Run every check, and raise one AssertionError that names all that failed.

    - The operator must be its own definition (`dense`, or `defined` without a map), in float64 with
      all gradients, at odd sizes, with hidden states, text and rotary positions, and closely so in
      half precision.
    - Its options must survive JSON, those that a form sets must change something, and its cost must
      be what PyTorch's counter sees, its density that of a sparse map.
    - In tiny models of every family it must be its definition, save and load, and give the teacher
      back; a training with it must resume.

    Args:
        operator: the class to check; it need not be registered.
        progress: called after each check with how many are done, and of how many.
    """
    failures = []
    listed = checks(operator)
    for number, check in enumerate(listed, 1):
        try:
            check()
        except (Exception, SystemExit) as error:
            failures.append(f"{check}: {_message(error)}")
        if progress:
            progress(number, len(listed))
    if failures:
        count = "1 check" if len(failures) == 1 else f"{len(failures)} checks"
        raise AssertionError(f"{count} of {operator.name} failed:\n" + "\n".join(failures))


def _message(error: Exception | SystemExit) -> str:
    text = str(error).strip()
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def registered(operator: type[Operator]) -> Iterator[None]:
    """Register an operator inside the block, if it is not.

    Args:
        operator: the class to register.
    """
    new = operator.name not in OPERATORS
    OPERATORS.add(operator)
    try:
        yield
    finally:
        if new:
            OPERATORS.remove(operator.name)


__all__: list[Any] = ["Check", "Form", "check_operator", "checks", "forms", "registered"]
