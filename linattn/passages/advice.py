"""What docs/advise.md shows: an advice of the committed run, as the terminal prints it."""

from linattn import project
from linattn.advise import Advice, picture, table

MODEL = "sd15"


def page() -> str:
    """Write the command, its output and its figure, from reports/advise."""
    advice = Advice.from_json(project.read_json(project.published(f"advise/{MODEL}.json")))
    sides = " ".join(str(side) for side in advice.sides)
    command = f"$ python -m linattn.advise {MODEL} --side {sides}"
    output = "\n".join(table.lines(advice))
    figure = f"![{picture.described(advice)}](advise.png)"
    return f"```text\n{command}\n{output}\n```\n\n{figure}"
