"""Show the plans of a teacher: error against cost, what each layer loses, and what a plan takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from linattn.report import figures, markdown
from linattn.report.numbers import short
from linattn.report.picture import SOFT, Look, Picture
from linattn.report.words import hundredths, listed, number

Rows = Sequence[Mapping[str, Any]]
STAGES = {"untrained": "not trained", "layerwise": "after the layerwise stage"}
LOOKS = {
    "interleaved": Look("#0072b2", "s", "-", False),
    "first": Look("#d55e00", "^", "-", False),
    "last": Look("#009e73", "v", "-", False),
    "diagnostics": Look("#aa4499", "D", "-", False),
}
HEADS = ("Budget", "Stage", "Cost", "Error, %", "Layers")


def pictures(result: Mapping[str, Any]) -> list[Picture]:
    """Draw a teacher's fronts and losses, stage by stage.

    Args:
        result: what plan-<role>.json holds.
    """
    return [*fronts(result), *losses(result)]


def fronts(result: Mapping[str, Any]) -> list[Picture]:
    """Draw error against cost: the plans joined by a line, and every rule at the same budgets."""
    drawn = []
    for stage, measured in _stages(result):
        points = [_point(row, row["rule"]) for row in _seen(nearest(measured["choices"]))]
        line = [_point(row, f"plan {row['budget']:g}") for row in _seen(measured["plans"])]
        if points or line:
            axes = {"x": "share of softmax's cost", "y": f"squared error, %, {STAGES[stage]}"}
            joined: dict[str, Any] = {"line": line, "line_name": "plans"} if points else {}
            drawn.append(figures.quality_cost(points or line, **axes, log_y=True, **joined))
    return drawn


def losses(result: Mapping[str, Any]) -> list[Picture]:
    """Draw what each layer loses under each candidate, over all noise levels."""
    layers = result.get("layer_names") or [str(layer) for layer in result["layers"]]
    drawn = []
    for stage, measured in _stages(result):
        by_label = measured["losses"]
        if by_label:
            table = [[100 * sum(row) for row in rows] for rows in by_label.values()]
            columns = list(map(list, zip(*table, strict=True)))  # a line for each layer
            title = f"What a layer loses, %, {STAGES[stage]}"
            names = {"rows": layers, "columns": list(by_label), "title": title}
            drawn.append(figures.heatmap(columns, **names, x="candidate", y="layer"))
    return drawn


def nearest(choices: Rows) -> list[Mapping[str, Any]]:
    """Return each rule's row of least error under each budget, whichever its candidate is."""
    best: dict[tuple[str, float], Mapping[str, Any]] = {}
    for row in choices:
        key = row["rule"], row["budget"]
        if key not in best or row["error"] < best[key]["error"]:
            best[key] = row
    return list(best.values())


def lines(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a line of cells for each plan."""
    rows: list[tuple[str, ...]] = []
    for stage, measured in _stages(result):
        for plan in measured["plans"]:
            cost, error = short(plan["cost"]), hundredths(plan["error"])
            taken = in_words(plan["choice"])
            rows.append((f"{plan['budget']:g}", STAGES[stage], cost, error, taken))
    return rows


def in_words(choice: Iterable[Sequence[str]]) -> str:
    """Name the layers of each label; one that changes with the noise has an arrow."""
    layers: dict[str, list[str]] = {}
    for layer, labels in enumerate(choice):
        label = labels[0] if len(set(labels)) == 1 else " → ".join(labels)
        layers.setdefault(label, []).append(str(layer))
    return "; ".join(f"{label} in {listed(numbers)}" for label, numbers in layers.items())


def in_markdown(result: Mapping[str, Any]) -> str:
    """Return the same lines as a table in Markdown."""
    rule = ["---", "---", "---:", "---:", "---"]
    return markdown.table([HEADS, rule, *lines(result)])


def described(result: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page says beside the pictures."""
    return {"sentence": sentence(result, run), "heads": HEADS, "lines": lines(result)}


def sentence(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Say on what the plans were measured.

    Args:
        result: what plan-<role>.json holds.
        run: what its run file holds; nothing where it is missing.
    """
    levels = listed([f"{level:g}" for level in result["noise"]])
    until = result.get("until")
    changes = (
        f", operators may change at noise {listed([f'{u:g}' for u in until])}" if until else ""
    )
    commit = (run.get("facts") or {}).get("commit")
    return (
        f"{number(result['n'], 'picture')}, noise levels {levels}{changes}, seed {result['seed']}, "
        f"{number(result['layerwise_steps'], 'step')} of the layerwise stage"
        f"{f', commit {commit}' if commit else ''}."
    )


def _stages(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the stages that were measured, in their order."""
    measured = result.get("stages") or {}
    return [(stage, measured[stage]) for stage in STAGES if stage in measured]


def _seen(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows that a logarithmic axis can show: a plan of softmax alone has no error."""
    return [row for row in rows if row["error"] > 0]


def _point(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    look = LOOKS.get(name, Look(SOFT, "o", "-", False))
    return {"name": name, "x": row["cost"], "y": 100 * row["error"], "look": look}
