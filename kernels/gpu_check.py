"""Check all that only a GPU can show, in one call under ten minutes: `make gpu-check`.

It needs torch and Triton and nothing else: no pytest, no plots, no network. Every section writes
its own file; a section that fails leaves a row that says so, and the others still run. The summary
comes last, and the exit code says whether everything held.
"""

import argparse
import functools
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
    tile_attention,
    use_backend,
    window_attention,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The largest ||result - exact|| / ||exact|| of results and of gradients. Where the definition in
# the same precision has a larger error, 1.5 times that one is allowed.
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
Case = tuple[str, Callable, Callable, list[Tensor]]


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    # Drawn on the device: a million tokens drawn on the host would take a minute.
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype) for shape in shapes]


def qkv(
    batch: int, queries: int, keys: int, heads: int, dim: int, value_dim: int, dtype: torch.dtype
) -> list[Tensor]:
    """Draw q, k and v."""
    q, k, v = (queries, dim), (keys, dim), (keys, value_dim)
    return tensors(*((batch, tokens, heads, size) for tokens, size in (q, k, v)), dtype=dtype)


# The matrix
# ---------------------------------------------------------------------------------------------


def linear_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, inputs: list[Tensor], **options: Any) -> Case:
        options = {"eps": 0.1, **options}
        return (
            f"linear {name}",
            lambda *t: linear_attention(*t, **options),
            lambda *t: reference.linear_attention(*t, **options),
            inputs,
        )

    for dim in (*HEAD_DIMS, 288):
        yield case(f"d={dim}", qkv(2, 200, 333, 3, dim, dim, dtype))
    for tokens in LENGTHS:
        yield case(f"N={tokens}", qkv(1, tokens, tokens, 2, 64, 64, dtype))
    for feature_map in ("relu", "relu2"):
        inputs = qkv(1, 300, 300, 2, 72, 72, dtype)
        yield case(feature_map, inputs, feature_map=feature_map, shift=1e-2)
    yield case("plain", qkv(1, 300, 300, 2, 64, 40, dtype), normalise=False)
    yield case("values wider than a tile", qkv(1, 200, 333, 2, 128, 144, dtype))
    mask = torch.rand(2, 300, generator=torch.Generator().manual_seed(1)).to(DEVICE) > 0.3
    mask[1] = False
    yield case("masked", qkv(2, 77, 300, 2, 64, 64, dtype), key_mask=mask)
    inputs = qkv(1, 300, 300, 2, 64, 64, dtype)
    inputs += tensors((1, 300, 2, 64), (1, 300, 2, 64), dtype=dtype, seed=1)

    def with_normaliser(function: Callable) -> Callable:
        return lambda q, k, v, a, b: function(q, k, v, eps=0.1, normaliser=(a, b))

    yield (
        "linear normaliser",
        with_normaliser(linear_attention),
        with_normaliser(reference.linear_attention),
        inputs,
    )


def window_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, inputs: list[Tensor], **options: Any) -> Case:
        return (
            f"window {name}",
            lambda *t: window_attention(*t, **options),
            lambda *t: reference.window_attention(*t, **options),
            inputs,
        )

    windows = ((1, 0, "disc"), (3, 77, "disc"), (8, 1, "square"), (99, 0, "disc"))
    for (height, width), (radius, text, shape) in itertools.product(PICTURES, windows):
        tokens = text + height * width
        if tokens > 2048 and radius == 99:
            continue
        inputs = qkv(1, tokens, tokens, 2, 64, 64, dtype)
        name = f"{height}x{width} r={radius} text={text} {shape}"
        yield case(name, inputs, height=height, width=width, radius=radius, text=text, shape=shape)
    for dim in HEAD_DIMS:
        inputs = qkv(1, 20 + 17 * 33, 20 + 17 * 33, 2, dim, dim, dtype)
        yield case(f"d={dim}", inputs, height=17, width=33, radius=5, text=20, return_lse=True)
    inputs = qkv(2, 32 * 32, 32 * 32, 2, 72, 72, dtype)
    inputs += tensors((2, 64, 2, 72), (2, 64, 2, 72), dtype=dtype, seed=2)

    def with_extra(function: Callable) -> Callable:
        return lambda q, k, v, a, b: function(q, k, v, height=32, width=32, radius=8, extra=(a, b))

    yield (
        "window extra",
        with_extra(window_attention),
        with_extra(reference.window_attention),
        inputs,
    )


def kept_tiles(q: Tensor, tiles: int, count: int) -> Tensor:
    """Draw the tiles that each tile of queries keeps, the same for every precision."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(q.shape[0], q.shape[2], tiles, tiles, generator=generator)
    return drawn.topk(count).indices.to(q.device)


def tile_cases(dtype: torch.dtype) -> Iterator[Case]:
    def case(name: str, dim: int, tile: int, text: int, count: int, **options: Any) -> Case:
        tiles = -(-17 // tile) * -(-33 // tile)
        options |= {"height": 17, "width": 33, "tile": tile, "text": text}
        return (
            f"tile {name}",
            lambda q, k, v: tile_attention(q, k, v, kept_tiles(q, tiles, count), **options),
            lambda q, k, v: reference.tile_attention(
                q, k, v, kept_tiles(q, tiles, count), **options
            ),
            qkv(1, text + 17 * 33, text + 17 * 33, 2, dim, dim, dtype),
        )

    for tile, text, count in ((1, 0, 7), (4, 0, 1), (4, 20, 45), (8, 77, 3), (16, 1, 2)):
        yield case(f"side={tile} text={text} kept={count}", 64, tile, text, count, means=True)
    for dim in HEAD_DIMS:
        returned = {"return_lse": True, "return_share": True}
        yield case(f"d={dim}", dim, 8, 20, 3, means=True, **returned)
    yield case("alone", 64, 4, 20, 9, return_lse=True)
    yield case("threshold", 64, 4, 20, 9, means=True, threshold=0.05)


def mediator_cases(dtype: torch.dtype) -> Iterator[Case]:
    for dim in HEAD_DIMS:
        inputs = qkv(2, 300, 1000, 2, dim, dim, dtype)
        inputs += tensors((2, 49, 2, dim), dtype=dtype, seed=3)
        yield f"mediator d={dim}", mediator_attention, reference.mediator_attention, inputs
    for count in COUNTS:
        inputs = qkv(1, 1000, 4097, 2, 64, 64, dtype)
        inputs += tensors((1, count, 2, 64), dtype=dtype, seed=3)
        yield f"mediator m={count}", mediator_attention, reference.mediator_attention, inputs
    inputs = qkv(2, 100, 333, 3, 72, 72, dtype)
    inputs += tensors((2, 16, 3, 72), (3, 16, 333), (2, 1, 100, 16), dtype=dtype, seed=4)

    def with_biases(function: Callable) -> Callable:
        return lambda q, k, v, m, a, b: function(q, k, v, m, bias_in=a, bias_out=b)

    yield (
        "mediator biases",
        with_biases(mediator_attention),
        with_biases(reference.mediator_attention),
        inputs,
    )


def results(function: Callable, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradients of all inputs for random gradients of the outputs."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = function(*inputs)
    outs = list(outs) if isinstance(outs, tuple) else [outs]
    generator = torch.Generator().manual_seed(9)
    grad_outs = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in outs]
    torch.autograd.backward(outs, grad_outs)
    return [tensor.detach() for tensor in outs], [tensor.grad for tensor in inputs]


def distance(result: Tensor, exact: Tensor) -> float:
    """Return the error relative to the tensor or, where all of it cancels, to numbers of size 1."""
    size = exact.norm().item() if exact.square().mean() > 1e-6 else exact.numel() ** 0.5
    return (result.double() - exact).norm().item() / size


def compare(case: Case, dtype: torch.dtype) -> Row:
    """Return the largest error of results and of gradients, beside the definition's own error.

    The definition's own error (`usual`) is that in the same precision.
    """
    name, function, definition, inputs = case
    exact = results(definition, [tensor.double() for tensor in inputs])
    groups = zip(results(function, inputs), results(definition, inputs), exact, strict=True)
    row: Row = {"case": name, "dtype": str(dtype).removeprefix("torch."), "ok": True}
    for (ours, usual, wanted), output, bound in zip(
        groups, ("result", "gradient"), BOUNDS[dtype], strict=True
    ):
        errors = distances(ours, wanted)
        usual_errors = distances(usual, wanted)
        row[output], row[f"{output}_usual"] = max(errors), max(usual_errors)
        for error, usual_error in zip(errors, usual_errors, strict=True):
            # In fp16 the definition's sums overflow: no more than ten times the bound is allowed.
            row["ok"] &= error < min(max(bound, 1.5 * usual_error), 10 * bound)
    return row


def distances(tensors: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [distance(tensor, wanted) for tensor, wanted in zip(tensors, exact, strict=True)]


# The same numbers in the layouts of models: slices of one projection, heads before tokens, tokens
# that begin at odd addresses.
LAYOUTS: dict[str, Callable[..., Sequence[Tensor]]] = {
    "sliced": lambda *t: torch.stack(t, 2).unbind(2),
    "heads first": lambda *t: [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in t],
    "unaligned": lambda *t: [torch.nn.functional.pad(tensor, (1, 0))[..., 1:] for tensor in t],
    "one for all": lambda *t: [tensor[:1].expand_as(tensor) for tensor in t],
}


def layout_cases(dtype: torch.dtype) -> Iterator[Case]:
    inputs = qkv(2, 20 * 20, 20 * 20, 2, 72, 72, dtype)
    calls: dict[str, Callable[[Any], Callable[..., Tensor]]] = {
        "linear": lambda module: lambda q, k, v: module.linear_attention(q, k, v, eps=0.1),
        "window": lambda module: (
            lambda q, k, v: module.window_attention(
                q, k, v, height=19, width=20, radius=4, text=20, scale=-0.1
            )
        ),
        "tile": lambda module: (
            lambda q, k, v: module.tile_attention(
                q, k, v, kept_tiles(q, 9, 2), height=19, width=20, tile=8, text=20, means=True
            )
        ),
        "mediator": lambda module: (
            lambda q, k, v: module.mediator_attention(q, k, v, q[:, ::40] + k[:, ::40], scale=-0.1)
        ),
    }
    for (kernel, call), (name, layout) in itertools.product(calls.items(), LAYOUTS.items()):
        yield (
            f"{kernel} {name}",
            lambda *t, call=call, layout=layout: call(linattn_kernels)(*layout(*t)),
            lambda *t, call=call, layout=layout: call(reference)(*layout(*t)),
            inputs,
        )


CASES = {
    "linear": linear_cases,
    "window": window_cases,
    "tile": tile_cases,
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


def run_job(dtype: torch.dtype, kernel: str, number: int) -> Row:
    """Return the row of a case by its number, since closures do not travel between processes."""
    case = next(itertools.islice(CASES[kernel](dtype), number, None))
    return guarded(case[0], lambda: compare(case, dtype))


def matrix(options: argparse.Namespace) -> list[Row]:
    """Compare every case, in several processes that share Triton's cache on disk.

    Nearly all of the time is compiling.
    """
    all_jobs = jobs()
    todo, until = iter(enumerate(all_jobs)), time.monotonic() + options.matrix
    with ThreadPoolExecutor(options.workers) as lanes:
        finished = lanes.map(lambda _: list(lane(todo, until)), range(options.workers))
        numbered_rows = dict(itertools.chain(*finished))
    rows = [numbered_rows[number] for number in range(len(all_jobs))]
    for row in rows:
        if not row["ok"]:
            print("  failed:", without_trace(row), flush=True)
    return rows


def without_trace(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "trace"}


def lane(todo: Iterator[tuple[int, Job]], until: float) -> Iterator[tuple[int, Row]]:
    """Run one case after the other in a process of its own.

    A process that dies or hangs costs its case, and is replaced for the next ones.
    """
    process = alone()
    for number, job in todo:
        seconds = until - time.monotonic()
        try:
            if seconds > 0:
                row = process.submit(run_job, *job).result(timeout=seconds)
            else:
                row = unfinished(job, "no time was left")
        except Exception as error:
            row = unfinished(job, f"{type(error).__name__} {error}".strip())
            end(process)
            process = alone()
        yield number, row
    end(process)


def unfinished(job: Job, why: str) -> Row:
    dtype, kernel, number = job
    return {"case": f"{kernel} {number} {dtype}", "ok": False, "error": why}


def alone() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare)


def end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()  # a case that hangs must not hold up the rest
    pool.shutdown(wait=False, cancel_futures=True)


def prepare() -> None:
    """Fill fresh memory with NaN, so that unwritten results show, and forbid tf32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


# What else a GPU shows
# ---------------------------------------------------------------------------------------------


def calls() -> dict[str, tuple[Callable, list[Tensor]]]:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    inputs = qkv(1, 64 * 64, 64 * 64, 4, 64, 64, dtype)
    return {
        "linear": (linear_attention, inputs),
        "window": (
            lambda q, k, v: window_attention(q, k, v, height=64, width=64, radius=8),
            inputs,
        ),
        "tile": (
            lambda q, k, v: tile_attention(
                q, k, v, kept_tiles(q, 64, 8), height=64, width=64, tile=8, means=True
            ),
            inputs,
        ),
        "mediator": (lambda q, k, v: mediator_attention(q, k, v, q[:, ::64]), inputs),
    }


def twice(options: argparse.Namespace) -> list[Row]:
    """Check that a second run, on another stream, gives the same bits."""
    rows = []
    for name, (function, inputs) in calls().items():
        first = results(function, inputs)
        with torch.cuda.stream(torch.cuda.Stream()) if DEVICE.type == "cuda" else nullcontext():
            second = results(function, inputs)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        pairs = zip(first[0] + first[1], second[0] + second[1], strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        rows.append({"case": f"{name} twice", "ok": same})
    return rows


def compiles(options: argparse.Namespace) -> list[Row]:
    """Check that torch.compile takes each function without a graph break."""
    rows = []
    for name, (function, inputs) in calls().items():

        def check(function=function, inputs=inputs) -> Row:
            outs, grads = results(torch.compile(function, fullgraph=True), inputs)
            plain, plain_grads = results(function, inputs)
            wanted = [tensor.double() for tensor in plain + plain_grads]
            error = max(distances(outs + grads, wanted))
            return {"ok": error < 1e-2, "error": error}

        rows.append(guarded(f"{name} compiled", check))
    return rows


def graphs(options: argparse.Namespace) -> list[Row]:
    """Check that a replayed CUDA graph gives the same bits."""
    rows = []
    for name, (function, inputs) in calls().items():

        def check(function=function, inputs=inputs) -> Row:
            with torch.no_grad():
                straight = function(*inputs)
                static = [tensor.clone() for tensor in inputs]
                function(*static)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = function(*static)
                for tensor in static:
                    tensor.zero_()
                for tensor, value in zip(static, inputs, strict=True):
                    tensor.copy_(value)
                graph.replay()
                torch.cuda.synchronize()
            return {"ok": torch.equal(out, straight)}

        rows.append(guarded(f"{name} as a CUDA graph", check))
    return rows


def million(options: argparse.Namespace) -> list[Row]:
    """Check the numbers at a million tokens, where offsets and half precision could overflow."""

    def linear(dtype: torch.dtype) -> Row:
        q, k, v = qkv(1, 1 << 20, 1 << 20, 24, 128, 128, dtype)
        v += 0.1
        out = linear_attention(q, k, v)
        some = slice(0, 1 << 20, 1 << 13)
        with use_backend("torch"):
            exact = linear_attention(q[:, some].float(), k.float(), v.float()).double()
        error = distance(out[:, some], exact)
        return {"ok": error < 8e-3, "error": error}

    def window(dtype: torch.dtype) -> Row:
        q, k, v = qkv(1, 1 << 20, 1 << 20, 24, 128, 128, dtype)  # more than 2^31 numbers a tensor
        out = window_attention(q, k, v, height=1024, width=1024, radius=8)
        first = (1024 - 16) * 1024  # the last sixteen rows of the picture, once more on their own
        near = (tensor[:, first - 8 * 1024 :] for tensor in (q, k, v))
        wanted = window_attention(*near, height=24, width=1024, radius=8)
        error = distance(out[:, first:], wanted[:, 8 * 1024 :].double())
        return {"ok": error < 1e-6, "error": error}

    rows = []
    for name, check in (("linear", linear), ("window", window)):
        run = functools.partial(check, torch.bfloat16)
        rows.append(guarded(f"{name} of a million tokens", run))
        torch.cuda.empty_cache()
    return rows


def plans() -> Iterator[tuple[bench.Case, tuple[str, ...]]]:
    """Yield the cases that have targets and the providers to time, the most telling first."""
    case, usual = bench.Case, ("ours", "eager")
    all_dense = ("sdpa-cudnn", "sdpa-flash", "sdpa-efficient")
    large, huge, million_tokens = 1 << 16, 1 << 18, 1 << 20
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
    for tokens in (huge, million_tokens):
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
    """Time the plans as long as there is time; a row for each says whether it could be timed."""
    began, rows, entries = time.monotonic(), [], []
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
        for entry in timed:
            print(bench.as_line(entry), flush=True)
        entries += timed
        # Written after each case, so that a run that is killed keeps what it measured.
        bench.write(entries, bench.facts(DEVICE), options.out)
        ours = [entry for entry in timed if entry["provider"] == "ours" and entry["skipped"]]
        error = {"error": ours[0]["skipped"]} if ours else {}
        rows.append({"case": title, "ok": not ours, **error})
    bench.draw(entries, options.out)
    return rows


def compile_all(capability: tuple[int, int]) -> int:
    """Build every kernel of the check into Triton's cache (TRITON_CACHE_DIR), without a GPU.

    A machine with the same Triton finds them there: its first run then takes half the time. Return
    how many there are.
    """
    import builds

    built: list[Any] = []
    with builds.aimed(capability, built), use_backend("triton"):
        for dtype, kernel in itertools.product(DTYPES, CASES):
            for _, function, _, inputs in CASES[kernel](dtype):
                results(function, inputs)
        for function, inputs in calls().values():
            results(function, [tensor.bfloat16() for tensor in inputs])
        for case, names in plans():
            if "ours" in names:
                short = replace(case, tokens=min(case.tokens, 1 << 12))
                results(bench.ours(short), bench.inputs(short, DEVICE, 1)[0])
    return len({compiled.hash for compiled in built})


def all_of(
    name: str, section: Callable[[argparse.Namespace], list[Row]], options: argparse.Namespace
) -> list[Row]:
    """Return a section's rows, or one that says why there are none."""
    try:
        return section(options)
    except Exception as error:
        return [failed(name, error)]


def guarded(name: str, check: Callable[[], Row]) -> Row:
    """Return the row of a check, or one that says why it failed."""
    try:
        return {"case": name, **check()}
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Row:
    with suppress(Exception):
        torch.cuda.empty_cache()
    message = f"{type(error).__name__}: {str(error)[:300]}"
    return {"case": name, "ok": False, "error": message, "trace": traceback.format_exc()}


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
    run_facts = bench.facts(DEVICE) | {"reason": backend(torch.zeros(1, device=DEVICE)).reason}
    print(", ".join(f"{name} {value}" for name, value in run_facts.items()), flush=True)
    sections: dict[str, list[Row]] = {}
    for name, section in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        start = time.monotonic()
        sections[name] = all_of(name, section, options)
        seconds = round(time.monotonic() - start, 1)
        report = {"facts": run_facts, "seconds": seconds, "rows": sections[name]}
        text = json.dumps(report, indent=1, default=str)
        (options.out / f"{name}.json").write_text(text + "\n")
        held = sum(row["ok"] for row in sections[name])
        print(f"{name}: {held} of {len(sections[name])} hold, {seconds} s", flush=True)
    torch.use_deterministic_algorithms(False)
    if not options.only or "bench" in options.only:
        left = options.seconds - (time.monotonic() - began)
        settings = argparse.Namespace(out=options.out, left=left)
        sections["bench"] = all_of("bench", benchmark, settings)
    with tarfile.open(options.out / "gpu-check.tar.gz", "w:gz") as packed:
        for path in sorted(options.out.rglob("*.*")):
            if path.is_file() and path.name != "gpu-check.tar.gz":
                packed.add(path, str(path.relative_to(options.out)))
    return summary(sections)


def summary(sections: dict[str, list[Row]]) -> int:
    """Print what failed and the largest errors, and return the exit code."""
    print("\n" + "-" * 100)
    failures = 0
    for section, rows in sections.items():
        failing = [row for row in rows if not row["ok"]]
        failures += len(failing)
        print(f"{section:<12}{len(rows) - len(failing):>4} of {len(rows)} hold")
        for row in failing:
            print("   ", without_trace(row))
    matrix = [row for row in sections.get("matrix", []) if "result" in row]
    for dtype, kernel in itertools.product(DTYPES, ("linear", "window", "mediator")):
        title = str(dtype).removeprefix("torch.")
        rows = [row for row in matrix if row["dtype"] == title and row["case"].startswith(kernel)]
        if rows:
            result, gradient = (
                max(row[output] for row in rows) for output in ("result", "gradient")
            )
            print(
                f"{kernel:<10}{dtype!s:<16} worst result {result:.1e}, worst gradient "
                f"{gradient:.1e}"
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
