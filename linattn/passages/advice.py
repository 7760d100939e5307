"""What docs/advise.md shows: an advice of the committed run, as the terminal prints it."""

from linattn import project
from linattn.advise import Advice, picture, table

MODEL = "sd15"
COMMAND = f"python -m linattn.advise {MODEL}"


def page() -> str:
    """Write the command, its output and its figure, from reports/advise."""
    file = project.published(f"advise/{MODEL}.json")
    if not file.is_file():
        return (
            f"No advice is committed yet: `{COMMAND} --json reports/{file.parent.name}/{file.name}`"
        )
    advice = Advice.from_json(project.read_json(file))
    sides = " ".join(str(side) for side in advice.sides)
    output = "\n".join(table.lines(advice))
    figure = f"![{picture.described(advice)}](advise.png)"
    return f"```text\n$ {COMMAND} --side {sides}\n{output}\n```\n\n{figure}"
