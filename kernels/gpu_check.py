"""All that only a GPU can show, in one call under ten minutes: `make gpu-check`, or `python
kernels/gpu_check.py`.

It needs torch and Triton and nothing else: no pytest, no plots, no network. Every section writes
its own file; a section that fails is a row that says so, and the others still run. The table comes
last, the exit code says whether everything held.
"""

import argparse
import itertools
import json
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import bench

import linattn_kernels
from linattn_kernels import (
    backend,
    linear_attention,
    mediator_attention,
    reference,
    use_backend,
    window_attention,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# ||found - exact|| / ||exact|| of results and of gradients, or 1.5 times what the definition itself
# loses.
BOUNDS = {
    torch.float32: (1e-6, 2e-6),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (8e-3, 1.5e-2),
}
DTYPES = tuple(BOUNDS)
HEAD_DIMS = (8, 16, 40, 64, 72, 80, 96, 128, 160)
LENGTHS = (1, 15, 16, 63, 64, 65, 127, 1000, 4097)
PICTURES = ((1, 1), (5, 7), (16, 16), (17, 33), (31, 64), (64, 64))
COUNTS = (1, 4, 9, 16, 49, 64, 196, 256, 1024)

Row = dict[str, Any]
Pair = tuple[str, Callable, Callable, list[Tensor]]


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    # a million tokens drawn on the host would take a minute
    draw = torch.Generator(DEVICE).manual_seed(seed)
    return [torch.randn(shape, generator=draw, device=DEVICE, dtype=dtype) for shape in shapes]


def qkv(
    batch: int, queries: int, keys: int, heads: int, dim: int, exit_dim: int, dtype: torch.dtype
) -> list[Tensor]:
    shapes = (
        (batch, queries, heads, dim),
        (batch, keys, heads, dim),
        (batch, keys, heads, exit_dim),
    )
    return tensors(*shapes, dtype=dtype)


# The matrix
# ---------------------------------------------------------------------------------------------


def linear_cases(dtype: torch.dtype) -> Iterator[Pair]:
    def pair(name: str, given: list[Tensor], **options: Any) -> Pair:
        options = {"eps": 0.1, **options}
        return (
            f"linear {name}",
            lambda *t: linear_attention(*t, **options),
            lambda *t: reference.linear_attention(*t, **options),
            given,
        )

    for dim in (*HEAD_DIMS, 288):
        yield pair(f"d={dim}", qkv(2, 200, 333, 3, dim, dim, dtype))
    for tokens in LENGTHS:
        yield pair(f"N={tokens}", qkv(1, tokens, tokens, 2, 64, 64, dtype))
    for feature_map in ("relu", "relu2"):
        yield pair(
            feature_map, qkv(1, 300, 300, 2, 72, 72, dtype), feature_map=feature_map, shift=1e-2
        )
    yield pair("plain", qkv(1, 300, 300, 2, 64, 40, dtype), normalise=False)
    yield pair("values wider than a tile", qkv(1, 200, 333, 2, 128, 144, dtype))
    mask = torch.rand(2, 300, generator=torch.Generator().manual_seed(1)).to(DEVICE) > 0.3
    mask[1] = False
    yield pair("masked", qkv(2, 77, 300, 2, 64, 64, dtype), key_mask=mask)
    given = qkv(1, 300, 300, 2, 64, 64, dtype) + tensors(
        (1, 300, 2, 64), (1, 300, 2, 64), dtype=dtype, seed=1
    )

    def own(function: Callable) -> Callable:
        return lambda q, k, v, a, b: function(q, k, v, eps=0.1, normaliser=(a, b))

    yield "linear normaliser", own(linear_attention), own(reference.linear_attention), given


def window_cases(dtype: torch.dtype) -> Iterator[Pair]:
    def pair(name: str, given: list[Tensor], **options: Any) -> Pair:
        return (
            f"window {name}",
            lambda *t: window_attention(*t, **options),
            lambda *t: reference.window_attention(*t, **options),
            given,
        )

    for height, width in PICTURES:
        for radius, text, shape in (
            (1, 0, "disc"),
            (3, 77, "disc"),
            (8, 1, "square"),
            (99, 0, "disc"),
        ):
            tokens = text + height * width
            if tokens > 2048 and radius == 99:
                continue
            given = qkv(1, tokens, tokens, 2, 64, 64, dtype)
            place = {
                "height": height,
                "width": width,
                "radius": radius,
                "text": text,
                "shape": shape,
            }
            yield pair(f"{height}x{width} r={radius} text={text} {shape}", given, **place)
    for dim in HEAD_DIMS:
        given = qkv(1, 20 + 17 * 33, 20 + 17 * 33, 2, dim, dim, dtype)
        yield pair(f"d={dim}", given, height=17, width=33, radius=5, text=20, return_lse=True)
    given = qkv(2, 32 * 32, 32 * 32, 2, 72, 72, dtype)
    given += tensors((2, 64, 2, 72), (2, 64, 2, 72), dtype=dtype, seed=2)

    def extra(function: Callable) -> Callable:
        return lambda q, k, v, a, b: function(q, k, v, height=32, width=32, radius=8, extra=(a, b))

    yield "window extra", extra(window_attention), extra(reference.window_attention), given


def mediator_cases(dtype: torch.dtype) -> Iterator[Pair]:
    for dim in HEAD_DIMS:
        given = qkv(2, 300, 1000, 2, dim, dim, dtype) + tensors(
            (2, 49, 2, dim), dtype=dtype, seed=3
        )
        yield f"mediator d={dim}", mediator_attention, reference.mediator_attention, given
    for count in COUNTS:
        given = qkv(1, 1000, 4097, 2, 64, 64, dtype) + tensors(
            (1, count, 2, 64), dtype=dtype, seed=3
        )
        yield f"mediator m={count}", mediator_attention, reference.mediator_attention, given
    given = qkv(2, 100, 333, 3, 72, 72, dtype)
    given += tensors((2, 16, 3, 72), (3, 16, 333), (2, 1, 100, 16), dtype=dtype, seed=4)

    def biased(function: Callable) -> Callable:
        return lambda q, k, v, m, a, b: function(q, k, v, m, bias_in=a, bias_out=b)

    yield "mediator biases", biased(mediator_attention), biased(reference.mediator_attention), given


def results(function: Callable, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    given = [each.detach().clone().requires_grad_() for each in given]
    found = function(*given)
    found = list(found) if isinstance(found, tuple) else [found]
    draw = torch.Generator().manual_seed(9)
    told = [torch.randn(each.shape, generator=draw).to(each) for each in found]
    torch.autograd.backward(found, told)
    return [each.detach() for each in found], [each.grad for each in given]


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative to the tensor; where all of it cancels, to numbers of size 1."""
    size = exact.norm().item() if exact.square().mean() > 1e-6 else exact.numel() ** 0.5
    return (found.double() - exact).norm().item() / size


def compare(case: Pair, dtype: torch.dtype) -> Row:
    """The worst of results and of gradients, beside what the definition loses in the same
    precision.
    """
    name, function, definition, given = case
    found, slopes = results(function, given)
    exact, exact_slopes = results(definition, [each.double() for each in given])
    plain, plain_slopes = results(definition, given)
    row: Row = {"case": name, "dtype": str(dtype).removeprefix("torch."), "ok": True}
    groups = (("result", found, exact, plain), ("gradient", slopes, exact_slopes, plain_slopes))
    for (kind, ours, theirs, usual), bound in zip(groups, BOUNDS[dtype], strict=True):
        errors = [distance(one, two) for one, two in zip(ours, theirs, strict=True)]
        losses = [distance(one, two) for one, two in zip(usual, theirs, strict=True)]
        row[kind], row[f"{kind}_usual"] = max(errors), max(losses)
        # In fp16 the definition's sums overflow: what it loses excuses no more than ten times the
        # bound.
        row["ok"] &= all(
            error < min(max(bound, 1.5 * loss), 10 * bound)
            for error, loss in zip(errors, losses, strict=True)
        )
    return row


# The same numbers where models keep them: slices of one projection, heads before tokens, rows that
# nothing divides.
LAYOUTS: dict[str, Callable[..., Sequence[Tensor]]] = {
    "sliced": lambda *t: torch.stack(t, 2).unbind(2),
    "heads first": lambda *t: [each.transpose(1, 2).contiguous().transpose(1, 2) for each in t],
    "unaligned": lambda *t: [torch.nn.functional.pad(each, (1, 0))[..., 1:] for each in t],
    "one for all": lambda *t: [each[:1].expand_as(each) for each in t],
}


def layout_cases(dtype: torch.dtype) -> Iterator[Pair]:
    given = qkv(2, 20 * 20, 20 * 20, 2, 72, 72, dtype)
    calls: dict[str, Callable[[Any], Callable[..., Tensor]]] = {
        "linear": lambda where: lambda q, k, v: where.linear_attention(q, k, v, eps=0.1),
        "window": lambda where: (
            lambda q, k, v: where.window_attention(
                q, k, v, height=19, width=20, radius=4, text=20, scale=-0.1
            )
        ),
        "mediator": lambda where: (
            lambda q, k, v: where.mediator_attention(q, k, v, q[:, ::40] + k[:, ::40], scale=-0.1)
        ),
    }
    for (kernel, call), (name, layout) in itertools.product(calls.items(), LAYOUTS.items()):
        yield (
            f"{kernel} {name}",
            lambda *t, call=call, layout=layout: call(linattn_kernels)(*layout(*t)),
            lambda *t, call=call, layout=layout: call(reference)(*layout(*t)),
            given,
        )


CASES = {
    "linear": linear_cases,
    "window": window_cases,
    "mediator": mediator_cases,
    "layout": layout_cases,
}
Job = tuple[torch.dtype, str, int]


def jobs() -> list[Job]:
    return [
        (dtype, kernel, n)
        for dtype in DTYPES
        for kernel in CASES
        for n, _ in enumerate(CASES[kernel](dtype))
    ]


def one(dtype: torch.dtype, kernel: str, number: int) -> Row:
    """The row of one case, made again here: closures do not travel between processes."""
    case = next(itertools.islice(CASES[kernel](dtype), number, None))
    return guarded(case[0], lambda: compare(case, dtype))


def matrix(options: argparse.Namespace) -> list[Row]:
    """Every case, in several processes: nearly all of the time is Triton compiling, which its cache
    on disk shares.
    """
    every = jobs()
    todo, until = iter(enumerate(every)), time.monotonic() + options.matrix
    with ThreadPoolExecutor(options.workers) as lanes:
        found = dict(
            itertools.chain(*lanes.map(lambda _: list(lane(todo, until)), range(options.workers)))
        )
    rows = [found[number] for number in range(len(every))]
    for row in rows:
        if not row["ok"]:
            print(
                "  failed:",
                {name: value for name, value in row.items() if name != "trace"},
                flush=True,
            )
    return rows


def lane(todo: Iterator[tuple[int, Job]], until: float) -> Iterator[tuple[int, Row]]:
    """One case after the other in a process of its own: one that dies or hangs costs its case, and
    no other's row.
    """
    process = alone()
    for number, job in todo:
        left = until - time.monotonic()
        try:
            row = (
                process.submit(one, *job).result(timeout=left)
                if left > 0
                else unfinished(job, "no time was left")
            )
        except Exception as error:
            row = unfinished(job, f"{type(error).__name__} {error}".strip())
            end(process)
            process = alone()
        yield number, row
    end(process)


def unfinished(job: Job, why: str) -> Row:
    dtype, kernel, place = job
    return {"case": f"{kernel} {place} {dtype}", "ok": False, "error": why}


def alone() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare)


def end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()  # a case that hangs must not hold up the rest
    pool.shutdown(wait=False, cancel_futures=True)


def prepare() -> None:
    """Fresh memory is NaN, as in the tests: what nobody wrote shows. Nothing is rounded to tf32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


# What else a GPU shows
# ---------------------------------------------------------------------------------------------


def calls() -> dict[str, tuple[Callable, list[Tensor]]]:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    given = qkv(1, 64 * 64, 64 * 64, 4, 64, 64, dtype)
    return {
        "linear": (linear_attention, given),
        "window": (lambda q, k, v: window_attention(q, k, v, height=64, width=64, radius=8), given),
        "mediator": (lambda q, k, v: mediator_attention(q, k, v, q[:, ::64]), given),
    }


def twice(options: argparse.Namespace) -> list[Row]:
    """Run twice, and on another stream: the same bits."""
    rows = []
    for name, (function, given) in calls().items():
        first = results(function, given)
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE.type == "cuda" else nullcontext():
            second = results(function, given)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        same = all(
            torch.equal(a, b)
            for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True)
        )
        rows.append({"case": f"{name} twice", "ok": same})
    return rows


def compiles(options: argparse.Namespace) -> list[Row]:
    """torch.compile without a break."""
    rows = []
    for name, (function, given) in calls().items():

        def check(function=function, given=given) -> Row:
            (found, slopes), (plain, plain_slopes) = (
                results(each, given) for each in (torch.compile(function, fullgraph=True), function)
            )
            pairs = zip(found + slopes, plain + plain_slopes, strict=True)
            error = max(distance(one, two.double()) for one, two in pairs)
            return {"ok": error < 1e-2, "error": error}

        rows.append(guarded(f"{name} compiled", check))
    return rows


def graphs(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name, (function, given) in calls().items():

        def check(function=function, given=given) -> Row:
            with torch.no_grad():
                straight = function(*given)
                static = [each.clone() for each in given]
                function(*static)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = function(*static)
                for each in static:
                    each.zero_()
                for each, value in zip(static, given, strict=True):
                    each.copy_(value)
                graph.replay()
                torch.cuda.synchronize()
            return {"ok": torch.equal(out, straight)}

        rows.append(guarded(f"{name} as a CUDA graph", check))
    return rows


def million(options: argparse.Namespace) -> list[Row]:
    """A million tokens once: no overflow of offsets or of half precision, and the numbers are
    right.
    """

    def linear(dtype: torch.dtype) -> Row:
        q, k, v = qkv(1, 1 << 20, 1 << 20, 24, 128, 128, dtype)
        v += 0.1
        found = linear_attention(q, k, v)
        some = slice(0, 1 << 20, 1 << 13)
        with use_backend("torch"):
            exact = linear_attention(q[:, some].float(), k.float(), v.float()).double()
        return {
            "ok": distance(found[:, some], exact) < 8e-3,
            "error": distance(found[:, some], exact),
        }

    def window(dtype: torch.dtype) -> Row:
        q, k, v = qkv(1, 1 << 20, 1 << 20, 24, 128, 128, dtype)  # more than 2^31 numbers a tensor
        found = window_attention(q, k, v, height=1024, width=1024, radius=8)
        rows = (1024 - 16) * 1024  # the last sixteen rows, once more by themselves
        near = (each[:, rows - 8 * 1024 :] for each in (q, k, v))
        alone = window_attention(*near, height=24, width=1024, radius=8)
        error = distance(found[:, rows:], alone[:, 8 * 1024 :].double())
        return {"ok": error < 1e-6, "error": error}

    rows = []
    for name, check in (("linear", linear), ("window", window)):
        rows.append(
            guarded(f"{name} of a million tokens", lambda check=check: check(torch.bfloat16))
        )
        torch.cuda.empty_cache()
    return rows


def plans() -> Iterator[tuple[bench.Case, tuple[str, ...]]]:
    """What is timed, beside whom: what targets are set for, the most telling first."""
    case, usual, all_dense = (
        bench.Case,
        ("ours", "eager"),
        ("sdpa-cudnn", "sdpa-flash", "sdpa-efficient"),
    )
    large, huge, whole = 1 << 16, 1 << 18, 1 << 20
    for mode in bench.MODES[:2]:
        yield case("linear", "flux", large, mode), (*usual, "compiled", *all_dense, "fla")
    for radius in (16, 8, 32):
        yield case("window", "flux", large, radius=radius, text=512), ("ours", *all_dense[:2])
    yield case("mediator", "dit", large), (*usual, "compiled", "two-sdpa", *all_dense[:2])
    yield case("window", "flux", large, "backward", radius=16, text=512), ("ours", "sdpa-cudnn")
    yield case("window", "flux", large, radius=16, text=512), ("flex",)
    for shape, mode in itertools.product(("sdxl", "dit"), bench.MODES[:2]):
        yield case("linear", shape, large, mode), (*usual, "sdpa-cudnn", "sdpa-flash")
    for tokens in (1 << 14, 1 << 12, 1 << 10):
        yield case("linear", "flux", tokens), (*usual, "sdpa-cudnn", "sdpa-flash")
        yield (
            case("window", "flux", tokens, radius=16, text=512),
            ("ours", "sdpa-cudnn", "sdpa-flash"),
        )
    for count in (196, 1024):
        yield case("mediator", "dit", large, count=count), usual
    yield case("mediator", "dit", 1 << 12), (*usual, "two-sdpa", "sdpa-cudnn")
    for shape in ("dit", "sdxl"):
        yield case("window", shape, large, radius=16), ("ours", "sdpa-cudnn")
    for tokens in (huge, whole):
        yield case("linear", "flux", tokens), ("ours",)
        yield case("window", "flux", tokens, radius=16, text=512), ("ours",)
        yield case("linear", "sdxl", tokens), ("ours",)
    yield case("mediator", "dit", large, "backward"), usual
    for radius in (8, 32):
        yield case("window", "flux", large, radius=radius, text=512), ("flex",)
    yield case("window", "flux", large, "backward", radius=16, text=512), ("flex",)
    for tokens in (1 << 14, 1 << 12, 1 << 10):
        yield case("linear", "flux", tokens, "backward"), (*usual, "sdpa-cudnn")
        yield case("linear", "sdxl", tokens), (*usual, "sdpa-cudnn")


def benchmark(options: argparse.Namespace) -> list[Row]:
    """The plans as long as there is time: one table of all, and a row each that says whether it
    could be timed.
    """
    began, rows, found = time.monotonic(), [], []
    for case, names in plans():
        title = f"{case.name}: {', '.join(names)}"
        if time.monotonic() - began > options.left:
            rows.append({"case": title, "ok": True, "skipped": "no time was left"})
            continue
        try:
            timed = bench.measure(case, names, DEVICE, repeats=15, budget=0.4)
        except Exception as error:
            rows.append(failed(title, error))
            continue
        for row in timed:
            print(bench.told(row), flush=True)
        found += timed
        # at once: a run that is killed keeps what it measured
        bench.write(found, bench.facts(DEVICE), options.out)
        ours = [row for row in timed if row["provider"] == "ours" and row["skipped"]]
        rows.append(
            {"case": title, "ok": not ours} | ({"error": ours[0]["skipped"]} if ours else {})
        )
    bench.draw(found, options.out)
    return rows


def compile_all(capability: tuple[int, int]) -> int:
    """Every kernel of the check, built on a machine without a GPU into Triton's cache
    (TRITON_CACHE_DIR).

    A machine with the same Triton finds them there: its first run then takes half the time. Returns
    how many there are.
    """
    import builds

    built: list[Any] = []
    with builds.aimed(capability, built), use_backend("triton"):
        for dtype, kernel in itertools.product(DTYPES, CASES):
            for _, function, _, given in CASES[kernel](dtype):
                results(function, given)
        for function, given in calls().values():
            results(function, [each.bfloat16() for each in given])
        for case, names in plans():
            if "ours" in names:
                short = replace(case, tokens=min(case.tokens, 1 << 12))
                results(bench.ours(short), bench.inputs(short, DEVICE, 1)[0])
    return len({each.hash for each in built})


def all_of(
    name: str, section: Callable[[argparse.Namespace], list[Row]], options: argparse.Namespace
) -> list[Row]:
    """A section's rows, or the one that says why there are none."""
    try:
        return section(options)
    except Exception as error:
        return [failed(name, error)]


def guarded(name: str, check: Callable[[], Row]) -> Row:
    try:
        return {"case": name, **check()}
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Row:
    with suppress(Exception):
        torch.cuda.empty_cache()
    words = f"{type(error).__name__}: {str(error)[:300]}"
    return {"case": name, "ok": False, "error": words, "trace": traceback.format_exc()}


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "matrix": matrix,
    "twice": twice,
    "graphs": graphs,
    "million": million,
    "compiles": compiles,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="after which no new case of the benchmark is begun",
    )
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument(
        "--matrix", type=float, default=330, help="seconds that the matrix may take"
    )
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS, "bench"])
    parser.add_argument(
        "--compile",
        metavar="9.0",
        help="build all kernels for that GPU, run none: no GPU is needed",
    )
    options = parser.parse_args()
    if options.compile:
        major, minor = options.compile.split(".")
        print(f"{compile_all((int(major), int(minor)))} kernels are in Triton's cache")
        return 0
    if DEVICE.type != "cuda":
        print(
            "There is no GPU here; the interpreter and the builds for sm_90 are in make test.",
            file=sys.stderr,
        )
        return 1
    prepare()
    began, options.out = time.monotonic(), options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    known = bench.facts(DEVICE) | {"reason": backend(torch.zeros(1, device=DEVICE)).reason}
    print(", ".join(f"{name} {value}" for name, value in known.items()), flush=True)
    found: dict[str, list[Row]] = {}
    for name, section in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        start = time.monotonic()
        found[name] = all_of(name, section, options)
        seconds = round(time.monotonic() - start, 1)
        text = json.dumps(
            {"facts": known, "seconds": seconds, "rows": found[name]}, indent=1, default=str
        )
        (options.out / f"{name}.json").write_text(text + "\n")
        held = sum(row["ok"] for row in found[name])
        print(f"{name}: {held} of {len(found[name])} hold, {seconds} s", flush=True)
    torch.use_deterministic_algorithms(False)
    if not options.only or "bench" in options.only:
        left = options.seconds - (time.monotonic() - began)
        found["bench"] = all_of("bench", benchmark, argparse.Namespace(out=options.out, left=left))
    with tarfile.open(options.out / "gpu-check.tar.gz", "w:gz") as packed:
        for path in sorted(options.out.rglob("*.*")):
            if path.is_file() and path.name != "gpu-check.tar.gz":
                packed.add(path, str(path.relative_to(options.out)))
    return summary(found)


def summary(found: dict[str, list[Row]]) -> int:
    print("\n" + "-" * 100)
    wrong = 0
    for section, rows in found.items():
        bad = [row for row in rows if not row["ok"]]
        wrong += len(bad)
        print(f"{section:<12}{len(rows) - len(bad):>4} of {len(rows)} hold")
        for row in bad:
            print("   ", {name: value for name, value in row.items() if name != "trace"})
    for dtype in DTYPES:
        rows = [
            row
            for row in found.get("matrix", [])
            if row.get("dtype") == str(dtype).removeprefix("torch.")
        ]
        for kernel in ("linear", "window", "mediator"):
            own = [row for row in rows if row["case"].startswith(kernel) and "result" in row]
            if own:
                result, gradient = (
                    max(row[kind] for row in own) for kind in ("result", "gradient")
                )
                print(
                    f"{kernel:<10}{dtype!s:<16} worst result {result:.1e}, worst gradient "
                    f"{gradient:.1e}"
                )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
