"""The tables of docs/which-operator.md, from the committed results, benchmarks and studies."""

from collections.abc import Mapping, Sequence
from typing import Any

from linattn import project
from linattn.passages import calls
from linattn.passages.ideas import backbone
from linattn.report import gpu, markdown, sentences, steps
from linattn.report.columns import measure
from linattn.report.data import Data, Report
from linattn.report.ranking import Ranking, ranking
from linattn.report.timing import baseline, timed
from linattn.report.words import listed, with_interval

HEADS = {"dit": "DiT-XL", "sdxl": "SDXL", "flux": "FLUX"}
# Rows of the plug-ins' table: what it shows, the plug-in, its question, the mark that is counted.
PLUGINS = (
    ("LoRA in replaced layers: its style", "lora-attn1", "another background", "dots"),
    ("LoRA in cross-attention: its style", "lora-attn2", "another background", "dots"),
    ("ControlNet, no shape in the caption: in place", "control", "shape not named", "place"),
    ("ControlNet, no shape in the caption: its shape", "control", "shape not named", "shape"),
    ("IP-Adapter, no caption: its colour", "adapter", "no caption", "colour"),
    ("IP-Adapter, no caption: its shape", "adapter", "no caption", "shape"),
    ("distilled layers in a fine-tune: its colours", "recolour", "colours turned", "colour"),
    ("distilled layers in a fine-tune: shapes", "recolour", "colours turned", "shape"),
)
NONE = "No result is committed yet."


def nearest(report: Report) -> str:
    """Return a row for each teacher: its students by error, and the operators nobody tried."""
    operators = dict.fromkeys(entry["operator"] for entry in report.students.values())
    lines = [["model", "students by error, the nearest first", "not tried"], ["---"] * 3]
    for data in report.parts.values():
        used = {entry["operator"] for entry in data.students.values()} | {calls.DENSE}
        missing = [f"`{name}`" for name in operators if name not in used]
        ranked = ranking(data, "error", "lower")
        lines.append([_model(data), _in_order(ranked), ", ".join(missing) or "–"])
    return markdown.table(lines)


def undistilled(report: Report) -> str:
    """Return a row for each teacher: its students by the error before any training."""
    lines = [["model", "converted and not trained, the nearest first"], ["---"] * 2]
    for data in report.parts.values():
        before = {}
        for name in data.methods:
            if error := measure(data.results[name], "error", "undistilled"):
                before[name] = error
        ranked = sorted(before.items(), key=lambda pair: pair[1]["value"])
        lines.append([_model(data), _in_order(ranked)])
    return markdown.table(lines)


def _model(data: Data) -> str:
    return f"{backbone(data)} ({data.name})"


def _in_order(ranked: Ranking) -> str:
    """Write students and errors, one a line, so that a phone shows them whole."""
    written = [f"{name} {with_interval(error)}" for name, error in ranked]
    return _plain("<br>".join(written)) or "no result yet"


def _plain(text: str) -> str:
    """Return Markdown that somebody may search: spaces in the place of unbreakable ones."""
    return text.replace("\u00a0", " ")


def cheapest(report: Report) -> str:
    """Return times of one call on a GPU and on the benchmark's processor, and of whole steps."""
    passages = [_on_gpu(gpu.read())]
    for data in report.parts.values():
        passages += [_on_cpu(data), _whole_steps(data)]
    return "\n\n".join(filter(None, passages))


def _on_gpu(timings: list[dict[str, Any]]) -> str:
    if not timings:
        return "No run on a GPU is committed yet: `make gpu-check` makes one."
    modes = [(model, mode) for mode in ("forward", "backward") for model in HEADS]
    of_mode = {pair: calls.at_64k(timings, *pair) for pair in modes}
    shown = [pair for pair in modes if of_mode[pair]]
    lines = [["operator", *(f"{HEADS[model]} {mode}" for model, mode in shown)]]
    lines.append(markdown.rule(len(shown)))
    for operator in (calls.DENSE, *calls.CASES):
        cells = [_milliseconds(of_mode[pair].get(operator)) for pair in shown]
        lines.append([f"`{operator}`", *cells])
    forms = ", ".join(calls.FORMS.values())
    note = (
        f"Milliseconds of one call at 64K tokens, bf16, {timings[0]['hardware']}, and how many "
        f"times less than cuDNN's softmax timed beside it: {forms}."
    )
    return f"{markdown.table(lines)}\n\n{note}"


def _milliseconds(call: calls.Call | None) -> str:
    if call is None:
        return "–"
    return f"{call.ms:.3g} ({call.times_less:.3g}x)" if call.times_less else f"{call.ms:.3g}"


def _on_cpu(data: Data) -> str:
    """Return the benchmark's times at its largest size, or nothing where there is none."""
    timings, dense = timed(data), baseline(data)
    if not timings:
        return ""
    tokens = max(row["tokens"] for row in timings)
    seconds = {row["operator"]: row["seconds"] for row in timings if row["tokens"] == tokens}
    lines = [["operator", "ms", "times less"], markdown.rule(2)]
    for name in sorted(seconds, key=lambda name: seconds[name]):
        ratio = f"{seconds[dense] / seconds[name]:.3g}" if dense in seconds else "–"
        milliseconds = 1000 * seconds[name]
        digits = 0 if milliseconds >= 100 else 1
        lines.append([f"`{name}`", f"{milliseconds:,.{digits}f}", ratio])
    shape = f"{data.benchmark['heads']} heads of {data.benchmark['head_dim']}"
    processor = data.benchmark["facts"]["hardware"]["cpu"]
    threads = timings[0]["threads"]
    note = f"One call of {tokens:,} tokens, {shape}, float32, {processor}, {threads} threads."
    return f"{markdown.table(lines)}\n\n{note}"


def _whole_steps(data: Data) -> str:
    """Return the times of the teacher's whole steps, or nothing where they were not timed."""
    timings = data.benchmark.get("steps") or []
    note = f"One whole step of {data.name}, on the same processor, and what it gains."
    return f"{steps.in_markdown(timings)}\n\n{note}" if timings else ""


def captions(report: Report) -> str:
    """Return what the judge finds in pictures that were drawn from captions."""
    captioned = [data for data in report.parts.values() if data.captioned and data.done]
    lines = []
    for data in captioned:
        lines += [f"- {data.name}: {sentence}" for sentence in sentences.in_short(data)[1:]]
    return _plain("\n".join(lines)) or NONE


def upscaling(report: Report) -> str:
    """Return the shapes that survive enlarging and drawing again, from the study of sizes."""
    result = _study("resolution.json")
    if not result:
        return "The study of sizes has no committed result: `make study STUDY=resolution`."
    lines = []
    for entry in result["teachers"].values():
        for row in entry["rows"]:
            marks = [_share(mark["shape"]) for mark in row["marks"]]
            lines.append([entry["folder"], row["model"], *marks])
    sides = {mark["side"] for mark in next(iter(result["teachers"].values()))["rows"][0]["marks"]}
    heads = ["teacher", "drawn again by", *(f"{side} px" for side in sorted(sides))]
    rule = ["---", "---", *markdown.rule(len(sides))[1:]]
    strengths = listed([f"{strength:g}" for strength in result["strengths"]])
    note = f"Pictures with the right shape, of those drawn, at noise of {strengths}."
    return f"{markdown.table([heads, rule, *lines])}\n\n{note}"


def _share(measured: Mapping[str, Any]) -> str:
    return f"{round(measured['value'] * measured['n'])} of {measured['n']}"


def plugins(report: Report) -> str:
    """Return how far plug-ins are obeyed on the teacher and on its students, in per cent."""
    result = _study("plugins.json")
    if not result:
        return "The study of plug-ins has no committed result: `make study STUDY=plugins`."
    bodies = result["bodies"]
    lines = [["% of pictures", *bodies], markdown.rule(len(bodies))]
    for title, plugin, question, mark in PLUGINS:
        of_body = _of_question(result["plugins"][plugin]["rows"], question)
        lines.append([title, *(_percent(of_body.get(body), mark) for body in bodies)])
    note = f"{result['pictures']} pictures a row; softmax is the teacher {result['teacher']}."
    return f"{markdown.table(lines)}\n\n{note}"


def _of_question(results: Sequence[Mapping[str, Any]], question: str) -> dict[str, Any]:
    return {result["body"]: result for result in results if result["question"] == question}


def _percent(result: Mapping[str, Any] | None, mark: str) -> str:
    """Write the share with the plug-in, and without it in brackets."""
    if result is None:
        return "–"
    with_it, without = result["with"][mark]["value"], result["without"][mark]["value"]
    return f"{100 * with_it:.0f} ({100 * without:.0f})"


def _study(name: str) -> dict[str, Any]:
    """Read the published result of a study: what ran on this machine is not committed."""
    path = project.published(f"studies/{name}")
    return project.read_json(path) if path.exists() else {}
