"""The tables of docs/your-own-model.md: what real teachers take in memory and in hours."""

from linattn import hours, params, project, shapes
from linattn.report import markdown

PROFILE = "real"


def memory() -> str:
    """Write the table of `python -m linattn.memory`, from reports/memory.json."""
    file = project.published("memory.json")
    if not file.is_file():
        return "No table is committed yet: `python -m linattn.memory --json reports/memory.json`"
    table = project.read_json(file)
    head, lines = table["head"], table["lines"]
    return markdown.table([head, markdown.rule(len(head) - 1), *lines])


def budgets() -> str:
    """Write what the profile `real` spends on each teacher, and the hours that this takes."""
    settings = params.load(PROFILE)
    head = ["teacher", "it draws", "a student's steps", "a row", "students"]
    head += [f"hours, {size} GB" for size in hours.RATES]
    lines = [head, markdown.rule(len(head) - 1)]
    for role in settings.teachers:
        numbers, names = settings.of(role), settings.of_teacher(role)
        recipe, sample, evaluate = settings.recipe(names[0]), numbers.sample, numbers.evaluate
        spent = [
            f"`{role}` ({shapes.shape(role).name})",
            f"{sample.pictures:,} of {sample.steps} steps",
            f"{recipe.layerwise_steps:,} + {recipe.steps:,} of {recipe.batch}",
            f"{evaluate.pictures:,} of {evaluate.steps} steps",
            f"{len(names)}",
        ]
        taken = hours.expected(settings, role).values()
        lines.append([*spent, *(f"{value:,.0f}" for value in taken)])
    return markdown.table(lines)
