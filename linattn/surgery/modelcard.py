"""Write the model card of a student, the README.md that the hub shows.

The card has what the student's files, a result and a run file say; what they leave out, it leaves
out too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linattn.attention import OPERATORS
from linattn.names import shortened
from linattn.surgery.hub import HUB_ID
from linattn.surgery.student import Entry, Student

LIBRARY = "linattn"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
MILLION = 1e6


@dataclass(frozen=True)
class Source:
    """Hold all that a model card is written from."""

    repo: str
    student: Student
    result: Mapping[str, Any]  # empty where none is known, as the next two
    run: Mapping[str, Any]
    license: str | None  # of the base

    @property
    def base(self) -> Mapping[str, Any]:
        return self.student.base or {}

    @property
    def operators(self) -> list[str]:
        return sorted({entry.operator for entry in self.student.entries})


def write(source: Source) -> str:
    """Return the model card, front matter first."""
    sections = [
        ("Load it", _loading(source)),
        ("What it is", [*_base(source), *_replaced(source.student)]),
        ("Error", _errors(source.result)),
        ("Cost", _cost(source.result)),
        ("Training", _training(source.result)),
        ("Machine", _machine(source.run)),
    ]
    title = source.repo.partition("/")[2]
    blocks = [_front_matter(source), f"# {title}", _summary(source)]
    for heading, lines in sections:
        if lines:
            blocks += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def _front_matter(source: Source) -> str:
    """Return the YAML that the hub reads; it knows a base by its hub id alone."""
    from huggingface_hub import ModelCardData  # takes a second to import

    name = source.base["name"]
    data = ModelCardData(
        base_model=name if HUB_ID.fullmatch(name) else None,
        license=source.license,
        library_name=LIBRARY,
        tags=[LIBRARY, "diffusers", *source.operators],
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(source: Source) -> str:
    count = len(source.student.entries)
    layers = "1 layer" if count == 1 else f"{count} layers"
    names = " and ".join(f"`{name}`" for name in source.operators)
    return (
        f"A student of `{source.base['name']}` ({source.base['class']}): {names} in place of the "
        f"self-attention of {layers}, made with linattn."
    )


def _loading(source: Source) -> list[str]:
    name = source.base["name"]
    is_hub_id = HUB_ID.fullmatch(name)
    comment = "" if is_hub_id else "  # your folder of this base"
    return [
        "```python",
        "import diffusers, linattn",
        f'pipe = diffusers.DiffusionPipeline.from_pretrained("{name}"){comment}',
        f'linattn.load(pipe, "{source.repo}")',
        "```",
        "",
        "`load` refuses another base than the one below; `load(..., strict=False)` takes a "
        "fine-tune of it.",
    ]


def _base(source: Source) -> list[str]:
    digests = ", ".join(f"{dtype} `{digest}`" for dtype, digest in source.base["weights"].items())
    lines = [
        f"- Base: {source.base['class']} `{source.base['name']}`, config "
        f"`{source.base['config_digest']}`, weights {digests or 'none'}."
    ]
    if source.license:
        lines.append(f"- Licence of the base: {source.license}.")
    return lines


def _replaced(student: Student) -> list[str]:
    """Describe the operators with the layers that have them, and count the weights."""
    by_operator: dict[str, list[str]] = {}
    for entry in student.entries:
        by_operator.setdefault(_operator(entry), []).append(entry.name)
    lines = [
        f"- Operator: {operator}, in {len(names)} of its layers: {shortened(names)}."
        for operator, names in by_operator.items()
    ]
    count = sum(tensor.numel() for tensor in student.tensors.values())
    held = (
        f"- The file holds {count:,} weights: those of these layers and any other that was trained."
    )
    return [*lines, held]


def _operator(entry: Entry) -> str:
    """Name an operator with its options and its paper."""
    paper = OPERATORS[entry.operator].paper if entry.operator in OPERATORS else ""
    linked = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return f"`{called(entry.operator, entry.options)}`" + (f" ({linked})" if linked else "")


def called(operator: str, options: Mapping[str, Any]) -> str:
    """Write an operator as a call with its options."""
    return f"{operator}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _errors(result: Mapping[str, Any]) -> list[str]:
    """Write the errors with their 95 % intervals, in all and by noise."""
    lines = _table(_error_lines(result))
    if not lines:
        return []
    note = (
        "Squared error of the prediction against the teacher's, in % of its square, with 95 % "
        "intervals: converted alone (before) and distilled (after)."
    )
    return [note, "", *lines, *_psnr(result)]


def _error_lines(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    by_noise = result.get("by_noise") or {}
    levels = by_noise.get("noise") or []
    after = by_noise.get("error") or []
    before = by_noise.get("undistilled") or [None] * len(levels)
    lines = [("all", _of(result, "undistilled", "error"), _of(result, "quality", "error"))]
    for noise, first, last in zip(levels, before, after, strict=False):
        lines.append((f"{noise:g}", _interval(first, 100), _interval(last, 100)))
    return [line for line in lines if any(line[1:])]


def _of(result: Mapping[str, Any], section: str, key: str) -> str:
    return _interval((result.get(section) or {}).get(key), 100)


def _interval(measure: Mapping[str, Any] | None, scale: float = 1, digits: int = 2) -> str:
    """Write a measure with its interval, as in "5.16 (4.46 to 5.93)"."""
    if not measure or measure.get("value") is None:
        return ""
    value = f"{measure['value'] * scale:.{digits}f}"
    if measure.get("low") is None or measure.get("high") is None:
        return value
    low, high = (f"{measure[end] * scale:.{digits}f}" for end in ("low", "high"))
    return f"{value} ({low} to {high})"


def _table(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    """Write a table, without the column of what was never measured."""
    if not lines:
        return []
    columns = list(zip(("noise", "before", "after"), *lines, strict=True))
    known = [column for column in columns if any(column[1:])]
    head, *body = [f"| {' | '.join(cells)} |" for cells in zip(*known, strict=True)]
    return [head, "|---" * len(known) + "|", *body]


def _psnr(result: Mapping[str, Any]) -> list[str]:
    """Say how near the pictures are to the teacher's, and how they were drawn."""
    psnr = _interval((result.get("quality") or {}).get("psnr"), digits=1)
    if not psnr:
        return []
    sizes = result.get("pictures") or {}
    drawn = _known(
        sizes, {"pictures": "{} pictures", "steps": "{} steps", "guidance": "guidance {}"}
    )
    ending = f" ({drawn})" if drawn else ""
    return ["", f"Pictures against the teacher's from the same noise: PSNR {psnr} dB{ending}."]


def _known(values: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Join the texts whose values are known."""
    return ", ".join(
        text.format(values[name]) for name, text in texts.items() if values.get(name) is not None
    )


def _cost(result: Mapping[str, Any]) -> list[str]:
    cost, side = result.get("cost") or {}, (result.get("pictures") or {}).get("side")
    lines = []
    if cost.get("core_macs") is not None and cost.get("macs") is not None:
        picture = f" of {side} x {side}" if side else ""
        lines.append(
            f"- One forward of one picture{picture}: {cost['macs'] / MILLION:,.1f} million "
            f"multiply-accumulates, {cost['core_macs'] / MILLION:,.1f} million of them in the "
            "attention cores."
        )
    texts = {
        "parameters": "{:,} in all",
        "added": "{:,} that the base does not have",
        "trained": "{:,} trained",
    }
    if counts := _known(cost, texts):
        lines.append(f"- Parameters: {counts}.")
    return lines


def _training(result: Mapping[str, Any]) -> list[str]:
    training = result.get("training") or {}
    texts = {
        "objective": "objective {}",
        "steps": "{} steps",
        "layerwise_steps": "{} of them layerwise",
        "batch": "batch {}",
        "samples": "{} samples",
    }
    lines = []
    if seeds := result.get("seeds"):
        mean = "; errors are means over them" if len(seeds) > 1 else ""
        lines.append(f"- Seeds: {', '.join(map(str, seeds))}{mean}.")
    if profile := result.get("profile"):
        lines.append(f"- Profile: {profile}.")
    if recipe := _known(training, texts):
        lines.append(f"- Recipe: {recipe}.")
    return lines


def _machine(run: Mapping[str, Any]) -> list[str]:
    facts, seconds = run.get("facts") or {}, run.get("seconds") or {}
    lines = _sentence("Hardware", _hardware(facts.get("hardware") or {}))
    lines += _sentence("Versions", _versions(facts))
    took = [f"{name} {value:,.0f} s" for name, value in seconds.items() if value is not None]
    return lines + _sentence("Seconds", took)


def _hardware(hardware: Mapping[str, Any]) -> list[str]:
    texts = {"gpu": "{}", "cpu": "{}", "cores": "{} cores", "memory_gb": "{} GB of memory"}
    known = _known(hardware, texts)
    without = ["no GPU"] if "gpu" in hardware and hardware["gpu"] is None else []
    return [*([known] if known else []), *without]


def _versions(facts: Mapping[str, Any]) -> list[str]:
    versions = facts.get("versions") or {}
    texts = [f"{name} {version}" for name, version in versions.items() if version]
    ours = _known(facts, {"commit": "linattn at commit {}", "python": "Python {}", "system": "{}"})
    return [*([ours] if ours else []), *texts]


def _sentence(title: str, texts: Iterable[str]) -> list[str]:
    joined = ", ".join(texts)
    return [f"- {title}: {joined}."] if joined else []
