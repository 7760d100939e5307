"""Every number in the prose of README.md and docs/ has a source: results, the log or the code.

Numbers between marks are written by `python -m linattn.readme` and held by --check. For
all others `from_results` makes the phrase that they stand in, or QUOTED has it with a passage of
its source.
"""

import csv
import re

import pytest

from linattn import params, project
from linattn.attention import OPERATORS
from linattn.passages import calls
from linattn.report import gpu

PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *(
                "families",
                "kernels",
                "layout",
                "library",
                "limits",
                "plan",
                "my-student-does-not-learn",
            ),
            *(
                "operators",
                "protocol",
                "related-systems",
                "results",
                "studies",
                "upscaling",
                "when-it-fails",
                "which-operator",
                "your-own-model",
            ),
        )
    ),
)
NUMBER = re.compile(r"(?<![A-Za-z_\d.-])\.?\d[\d,.]*(?:e-?\d+)?")
# Names that hold digits, and what a list counts.
NAMES = (
    *(
        "SD 1.5 to 3.5",
        "SD 1.5, PixArt-Sigma, SD3.5-M",
        "SD 1.5, 2.1, SDXL",
        "95 % interval",
        "both of 95 %",
        "with 95 % intervals",
    ),
    *("1. The teacher draws", "2. The attention", "3. Layer by layer", "4. End to end"),
    *("pure noise at 1 to none at 0", "1 starts at pure noise", "near or above 1"),
)


def text(path):
    return (project.ROOT / path).read_text()


def prose(path):
    """Return the words of a page: without generated passages, code and the targets of links."""
    words = re.sub(r"<!-- (.+?): written by.*?<!-- end of \1 -->", "", text(path), flags=re.S)
    words = re.sub(r"```.*?```", "", words, flags=re.S)
    words = re.sub(r"`[^`]*`", "", words)
    words = re.sub(r"\]\([^)]*\)", "]", words)
    return " ".join(words.split())


def row(name):
    """Read a committed result."""
    return project.read_json(project.published(f"results/{name}.json"))


def value(name, key):
    """Write a measure of a committed result in per cent."""
    return f"{100 * row(name)['quality'][key]['value']:.1f} %"


def card(name):
    return project.read_json(project.ROOT / "data" / "teachers" / name / "card.json")


def from_results():
    """Yield (page, phrase) with the numbers of committed results."""
    learn, limits = "docs/my-student-does-not-learn.md", "docs/limits.md"
    settings = params.load("nano")
    radius = [settings.students[name].options["radius"] for name in ("clear", "clear-pool")]
    plain, pooled = value("clear", "error"), value("clear-pool", "error")
    yield learn, f"of radius {radius[0]} has an error of {plain}, of radius {radius[1]} with one"
    yield learn, f"of radius {radius[1]} with one of {pooled}."
    colours, shapes = value("flux-linfusion", "colour"), value("flux-linfusion", "shape")
    yield learn, f"draws {colours} of colours and {shapes} of shapes"
    by_noise = row("clear")["by_noise"]
    errors = [error["value"] for error in by_noise["error"]]
    noise = by_noise["noise"][errors.index(max(errors))]
    for page in (learn, "docs/which-operator.md"):
        yield page, f"errs most at noise {noise:g}"
    yield learn, f"nano has {settings.sample.pictures};"
    seeds = {1: "One training seed"}[len(settings.distill.seeds)]
    yield limits, f"{seeds}, {settings.evaluate.pictures} pictures a row"
    gate = card("flux-nano")["gate"]
    both, pair = gate["both"], gate["two shapes"]
    captions = f"{both['n']} captions"
    yield limits, f"({100 * both['value']:.0f} % of shapes over its gate's {captions})"
    yield limits, f"(both shapes in {100 * pair['value']:.0f} %)"
    call = calls.at_64k(gpu.read(), "dit")["linfusion"]
    times = f"{call.times_less:.0f}"
    yield (
        "docs/kernels.md",
        f'"cuDNN takes {times}x" means that cuDNN\'s softmax attention takes {times}',
    )
    counted = list(csv.DictReader(text("reports/gpu/counters.csv").splitlines()))
    window = max(counted, key=lambda row: float(row["l2_mb"]))
    rate = float(window["l2_mb"]) / float(window["us"])
    yield "docs/kernels.md", f"Windows draw {rate:.1f} TB/s from the L2"
    sizes = project.read_json(project.published("studies/resolution.json"))["sides"]
    yield "docs/studies.md", f"timed up to {max(sizes)} px"


# (page, phrase, the file that has it, the passage there)
QUOTED = (
    ("README.md", "Python 3.11 or newer", "pyproject.toml", 'requires-python = ">=3.11"'),
    ("docs/library.md", "(some 3 GB)", "Makefile", "some 300 MB instead of 3 GB"),
    ("docs/library.md", "takes 300 MB", "Makefile", "some 300 MB instead of 3 GB"),
    *(
        ("docs/kernels.md", *quoted)
        for quoted in (
            ("capability 8.0 on", "kernels/linattn_kernels/launch.py", "CAPABILITY = (8, 0)"),
            ("definitions (2e-6)", "tests/test_kernels.py", "torch.float32: 2e-6"),
            ("heads from 40 to 288", "tests/test_kernel_builds.py", '"--dims", "40", "64"'),
            ("at 64 and 128 with", "tests/test_kernel_builds.py", '"64", "128", "288"'),
            ("16-byte asynchronous", "docs/LOG.md", "16 bytes divide the address"),
            ("For sm_80, 89, 100 and 120", "tests/test_kernel_builds.py", '"10.0", "12.0", "8.0"'),
            ("of radius 16 at FLUX's", "kernels/targets.json", "window r=16 text=512 flux"),
            ("(fp16, heads of 96, biases)", "docs/LOG.md", "biases, heads of 96."),
            ("heads to 64 channels takes", "docs/LOG.md", "Heads to 64 channels move seven"),
            ("at heads to 64 channels, which", "docs/LOG.md", "Heads to 64 channels move seven"),
            ("tiles of 64 queries", "docs/LOG.md", "four warps and 64 rows a multiprocessor"),
            ("tiles of 128 leave", "docs/LOG.md", "for one of eight and 128"),
            ("heads of 72 are padded to 128", "docs/LOG.md", "The 72 channels of a DiT head"),
            ("Up to 4K tokens", "docs/LOG.md", "Below 16K tokens a model wants graphs"),
        )
    ),
    ("docs/operators.md", "16 mediators down to noise 0.5", "params.yaml", "until: 0.5, count: 16"),
    ("docs/operators.md", "and 64 below it", "params.yaml", "until: 0.0, count: 64"),
    ("docs/protocol.md", "89 of 89 figures agreed", "docs/LOG.md", "89 of 89 figures agree"),
    ("docs/protocol.md", "([the log], 2026-11-28)", "docs/LOG.md", "### 2026-11-28 · Another"),
    ("docs/upscaling.md", "here 0.4, is", "docs/upscaling.md", "pictures, 2, 0.4, prompts"),
    ("docs/limits.md", "at most 288 channels", "kernels/linattn_kernels/check.py", "MOST = 288"),
    ("docs/which-operator.md", "At 64K tokens", "kernels/targets.json", "dit 65536 forward"),
    ("docs/which-operator.md", "At 256 tokens no whole step", "params.yaml", "sides: [16, 32, 64]"),
    ("docs/which-operator.md", "radius 8, 16 and 32", "kernels/targets.json", "window r=32"),
    ("docs/which-operator.md", "at 256 px", "docs/LOG.md", "flux-nano at 256 px | softmax 1 of 8"),
    *(
        ("docs/my-student-does-not-learn.md", phrase, "docs/LOG.md", passage)
        for phrase, passage in (
            ("ended at .216 with 1e-3", "Muon, 1e-3 (layerwise 2e-3) | .395 | .216"),
            ("at .079 with 8e-3", "Muon, 8e-3 | .143 | .079"),
            ("at .160 with 1e-3", "AdamW, 1e-3 (layerwise 2e-3) | .160"),
            ("at .122 with 3e-3", "AdamW, 3e-3 (layerwise 4e-3) | .122"),
            (".140 with 32 a step", "32, 40 + 70, 8e-3 | .153 | .140"),
            (".127 with 16 at the same cost", "16, 80 + 140, 8e-3 | | .127"),
            (".146 without", "32, 100, 8e-3, no layerwise stage | .146"),
            (".153 with it", "32, 40 + 70, 8e-3 | .153"),
            (
                "12.9 % after 60 + 120 steps",
                "instead of 60 + 120 (linfusion 14.2 instead of 12.9 %",
            ),
            ("14.2 % after 50 + 100", "50 + 100 steps instead of 60 + 120 (linfusion 14.2"),
            ("25.9 s for 6 steps", "GNU's default (spins 300,000 rounds) | 25.9 s"),
            ("1.6 s with", "OMP_WAIT_POLICY=PASSIVE | 1.6 s"),
        )
    ),
    (
        "docs/my-student-does-not-learn.md",
        "is 1e-4 because 1e-6 gave NaN in fp16",
        "linattn/attention/linfusion.py",
        "1e-4 keeps fp16 finite where 1e-6 gave NaN",
    ),
)


def phrases(page):
    made = [phrase for path, phrase in from_results() if path == page]
    return [*made, *(phrase for path, phrase, *_ in QUOTED if path == page), *NAMES]


def test_numbers_in_prose_are_those_of_the_committed_results():
    made = list(from_results())
    assert len(made) > 8
    assert not [(page, phrase) for page, phrase in made if phrase not in prose(page)]


@pytest.mark.parametrize(("page", "phrase", "source", "passage"), QUOTED)
def test_a_number_in_prose_stands_in_its_source(page, phrase, source, passage):
    assert phrase in prose(page)
    assert passage in " ".join(text(source).split())


@pytest.mark.parametrize("page", PAGES)
def test_every_number_in_prose_has_a_source(page):
    words = prose(page)
    covered = set()
    for phrase in phrases(page):
        for match in re.finditer(re.escape(phrase), words):
            covered |= set(range(*match.span()))
    loose = [match for match in NUMBER.finditer(words) if match.start() not in covered]
    assert not [words[max(0, m.start() - 40) : m.end() + 20] for m in loose]


def test_a_number_without_a_source_is_named():
    """The pattern sees decimals, thousands and exponents, and no number inside a name."""
    numbers = NUMBER.findall("SD3 has 1,024 tokens at .25, 3e-4 and 12.5 %, sm_90, FLUX.1, H200")
    assert [number.strip(",.") for number in numbers] == ["1,024", "25", "3e-4", "12.5"]


def test_seven_heads_are_built_for_hopper():
    import test_kernel_builds

    dims = set()
    for arguments in test_kernel_builds.HOPPER.values():
        if "bfloat16" in arguments:
            dims |= {int(word) for word in arguments if word.isdecimal()}
    assert (len(dims), min(dims), max(dims)) == (7, 40, 288)
    assert "at seven heads from 40 to 288" in prose("docs/kernels.md")


def test_the_minutes_that_the_readme_promises_are_those_of_params():
    minutes = sum(teacher.minutes for teacher in params.load("nano").teachers.values())
    assert f"some {round(minutes, -1)} minutes on 2 cores" in text("README.md")


def test_as_many_ideas_as_the_readme_says():
    published = [operator for operator in OPERATORS.values() if "arXiv" in operator.paper]
    words = {14: "fourteen"}
    assert f"{words[len(published)]} published ideas" in prose("README.md")


def test_nobody_saves_memory_at_64k_as_the_readme_says():
    megabytes = [call.memory_mb for call in calls.at_64k(gpu.read(), "dit").values()]
    assert len(megabytes) == 4
    assert max(megabytes) < 1.05 * min(megabytes)


def test_clear_begins_nearest_to_every_teacher_and_linfusion_farthest():
    """As docs/which-operator.md says."""
    begins = {}
    for name, student in params.load("nano").students.items():
        published = project.published(f"results/{name}.json").is_file()
        if published and student.operator != "softmax":
            error = row(name)["undistilled"]["error"]["value"]
            begins.setdefault(student.teacher, {})[error] = student.operator
    assert {errors[min(errors)] for errors in begins.values()} == {"clear"}
    assert {errors[max(errors)] for errors in begins.values()} == {"linfusion"}


def test_no_whole_step_is_faster_at_256_tokens_and_all_are_at_4096():
    steps = project.read_json(project.published("runs/benchmark-class.run.json"))["steps"]
    small = [step["ratio"] for step in steps if step["tokens"] == 256]
    large = [step["ratio"] for step in steps if step["tokens"] == 4096]
    assert max(small) == 1.0  # softmax itself
    assert sorted(large)[0] == 1.0
    assert len(large) > 5


def test_linfusion_multiplies_more_than_softmax_at_the_students_size():
    cores = [row(name)["cost"]["core_macs"] for name in ("teacher-class", "linfusion")]
    assert cores[0] < cores[1]


def test_the_loras_effect_is_a_third_to_a_half():
    plugins = project.read_json(project.published("studies/plugins.json"))["plugins"]
    dots = {row["body"]: row["with"]["dots"]["value"] for row in plugins["lora-attn1"]["rows"]}
    teacher = dots.pop("softmax")
    shares = [share / teacher for share in dots.values()]
    assert min(shares) > 0.33
    assert max(shares) < 0.53
    assert "keeps a third to a half" in prose("README.md")
    assert max(dots, key=dots.get) == "sd-linfusion"
