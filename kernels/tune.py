"""Search tile sizes and launch settings: `python kernels/tune.py --out reports/gpu`, on the GPU
they are for.

- Candidates of one kernel run on one case, in turns in one loop, each against the results of the
  shipped one: what differs from it, or does not run, is not timed. A candidate that spills is:
  `kernels/builds.py` says so of what ships.
- The shipped tables are not written: the best are printed as lines to paste, beside what is shipped
  now.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import bench

from linattn_kernels import launch

How = dict[str, int]
Call = Callable[..., Any]


@dataclass(frozen=True)
class Search:
    """One kernel on one case: what runs it, and what is tried beside what is shipped."""

    kernel: str
    case: bench.Case
    run: Callable[[list[Tensor]], Call]
    candidates: tuple[How, ...]

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.run.__name__} {self.case.name}"


# What runs each kernel
# ---------------------------------------------------------------------------------------------


def state(given: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    _, k, v = given
    return lambda: linear_triton.state(k, v, None, None, "elu1", 0.0)


def read(given: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    q, k, v = given
    values, keys, _ = linear_triton.state(k, v, None, None, "elu1", 0.0)
    return lambda: linear_triton.read(q, None, values, keys, "elu1", 0.0, 1e-4, True)


def read_backward(given: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    q, k, v = given
    values, keys, _ = linear_triton.state(k, v, None, None, "elu1", 0.0)
    grad = torch.randn_like(v)
    return lambda: linear_triton.read_backward(grad, q, None, values, keys, "elu1", 0.0, 1e-4, True)


def state_backward(given: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    _, k, v = given
    values, keys, count = linear_triton.state(k, v, None, None, "elu1", 0.0)
    return lambda: linear_triton.state_backward(values, keys, count, k, v, None, None, "elu1", 0.0)


def place(case: bench.Case) -> tuple[Any, ...]:
    return (*case.sides, float(case.radius), case.text, "disc", case.dim**-0.5)


def picture(case: bench.Case) -> Callable[[list[Tensor]], Call]:
    """The window alone: the text's own rows are another kernel's."""

    def run(given: list[Tensor]) -> Call:
        from linattn_kernels import window_triton

        q, k, v = given
        return lambda: window_triton.window(q, k, v, None, None, *place(case), False)[0]

    return run


def slopes(case: bench.Case) -> Callable[[list[Tensor]], Call]:
    def run(given: list[Tensor]) -> Call:
        from linattn_kernels import window_triton

        q, k, v = given
        out, lse = window_triton.window(q, k, v, None, None, *place(case), True)
        grad = torch.randn_like(out)
        return lambda: window_triton.window_backward(
            grad, None, q, k, v, None, None, out, lse, *place(case)
        )[:3]

    return run


def words(given: list[Tensor]) -> Call:
    """512 rows over all columns: the text of a window."""
    from linattn_kernels import mediator_triton

    q, k, v = given
    rows = q[:, :512]
    return lambda: mediator_triton.gather(rows, k, v, None, q.shape[3] ** -0.5)[0]


def gather(given: list[Tensor]) -> Call:
    from linattn_kernels import mediator_triton

    q, k, v, mediators = given
    return lambda: mediator_triton.gather(mediators, k, v, None, q.shape[3] ** -0.5)[0]


def spread(given: list[Tensor]) -> Call:
    from linattn_kernels import mediator_triton

    q, k, v, mediators = given
    told, _ = mediator_triton.gather(mediators, k, v, None, q.shape[3] ** -0.5)
    return lambda: mediator_triton.spread(q, mediators, told, None, q.shape[3] ** -0.5)[0]


def short_slopes(given: list[Tensor]) -> Call:
    """Both backwards of mediators: rows and columns, each once with few and once with many."""
    from linattn_kernels import mediator_triton

    q, k, v, mediators = given
    scale = q.shape[3] ** -0.5
    told, first = mediator_triton.gather(mediators, k, v, None, scale)
    out, second = mediator_triton.spread(q, mediators, told, None, scale)
    grad = torch.randn_like(out)

    def run() -> tuple[Tensor, ...]:
        dq, dm, d_told, _ = mediator_triton.spread_backward(
            grad, q, mediators, told, None, out, second, scale
        )
        more = mediator_triton.gather_backward(d_told, mediators, k, v, None, told, first, scale)[
            :3
        ]
        return dq, dm, *more

    return run


def grids(names: str, *values: tuple[int, ...]) -> tuple[How, ...]:
    return tuple(dict(zip(names.split(), each, strict=True)) for each in values)


def times(rows: tuple[How, ...], **more: tuple[int, ...]) -> tuple[How, ...]:
    """Every row with every one of these."""
    for name, values in more.items():
        rows = tuple({**row, name: value} for row in rows for value in values)
    return rows


# A product's rows are 16 a warp or a multiple: with fewer, warps do each other's work again.
STATE = times(
    grids("BN BE num_warps", (32, 128, 4), (32, 128, 8), (64, 128, 8), (64, 128, 4)),
    num_stages=(2, 3, 4),
)
READ = times(grids("BN BE num_warps", (64, 128, 4), (128, 128, 8)), num_stages=(1, 2, 3, 4))
TOGETHER = times(
    grids("BN BE num_warps", (64, 64, 4), (128, 64, 4), (128, 64, 8)),
    num_stages=(1, 2, 3),
    TOGETHER=(True,),
)
SIDES = "QY QX KY KX num_warps"
FORWARD = times(
    grids(SIDES, (8, 16, 8, 8, 8), (8, 16, 8, 16, 8), (8, 8, 8, 8, 4), (8, 8, 4, 8, 4)),
    num_stages=(2, 3, 4),
)
QUERIES = times(
    grids(SIDES, (8, 16, 8, 8, 8), (8, 16, 4, 8, 8), (8, 8, 8, 8, 4), (8, 8, 4, 8, 4)),
    num_stages=(1, 2, 3),
)
KEYS = times(
    grids(SIDES, (4, 8, 8, 16, 8), (8, 8, 8, 16, 8), (4, 8, 8, 8, 4), (8, 8, 8, 8, 4)),
    num_stages=(1, 2, 3),
)
ATTEND = times(
    grids("BM BN num_warps", (64, 64, 4), (64, 128, 4), (128, 64, 8), (64, 32, 4)),
    num_stages=(2, 3, 4),
)
SPREAD = times(grids("BM num_warps", (64, 4), (128, 8)), num_stages=(1, 2, 3, 4))
ROWS = times(
    grids("BM BN num_warps", (64, 64, 4), (64, 32, 4), (128, 64, 8), (128, 32, 8)),
    num_stages=(1, 2, 3),
)
COLUMNS = times(
    grids("BM BN num_warps", (64, 64, 4), (32, 64, 4), (64, 128, 8), (32, 128, 8)),
    num_stages=(1, 2, 3),
)


def searches() -> Iterator[Search]:
    window = {shape: bench.Case("window", shape, 1 << 16) for shape in bench.SHAPES}
    linear = {shape: bench.Case("linear", shape, 1 << 16) for shape in bench.SHAPES}
    short = {shape: bench.Case("mediator", shape, 1 << 16) for shape in bench.SHAPES}
    for shape in ("flux", "dit", "sdxl"):
        yield Search("window_forward", window[shape], picture(window[shape]), FORWARD)
        yield Search("linear_state", linear[shape], state, STATE)
        yield Search("linear_read", linear[shape], read, READ)
        both = READ + TOGETHER if bench.SHAPES[shape][1] <= 64 else READ
        yield Search("linear_read_backward", linear[shape], read_backward, both)
        yield Search("linear_state_backward", linear[shape], state_backward, READ)
    yield Search("softmax_attend", linear["flux"], words, ATTEND)
    for shape in ("dit", "flux", "sdxl"):
        yield Search("softmax_attend", short[shape], gather, ATTEND)
        yield Search("softmax_spread", short[shape], spread, SPREAD)
    for shape in ("flux", "dit", "sdxl"):
        yield Search("window_queries", window[shape], slopes(window[shape]), QUERIES)
        yield Search("window_keys", window[shape], slopes(window[shape]), KEYS)
        yield Search("softmax_rows", short[shape], short_slopes, ROWS)
        yield Search("softmax_columns", short[shape], short_slopes, COLUMNS)


# Trying
# ---------------------------------------------------------------------------------------------


@contextmanager
def tried(kernel: str, how: How | None) -> Iterator[None]:
    """Inside, the kernel takes this configuration."""
    shipped = launch.config

    def config(name: str, like: Tensor, dim: int, tokens: int = 1) -> How:
        return how if how is not None and name == kernel else shipped(name, like, dim, tokens)

    launch.config = config
    try:
        yield
    finally:
        launch.config = shipped


def leaves(found: Any) -> list[Tensor]:
    return (
        [found]
        if isinstance(found, Tensor)
        else [each for each in found if isinstance(each, Tensor)]
    )


def agree(found: list[Tensor], shipped: list[Tensor]) -> bool:
    return all(
        bool((one.float() - two.float()).norm() <= 2e-2 * two.float().norm())
        for one, two in zip(found, shipped, strict=True)
    )


def search(
    given: Search, device: torch.device, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """A row a candidate, the fastest first; the shipped one is among them."""
    copies = max(1, min(8, bench.L2 // max(1, 3 * given.case.tensor) + 1)) if repeats else 1
    sets = bench.inputs(given.case, device, copies)
    shipped = launch.config(given.kernel, sets[0][0], given.case.dim, given.case.tokens)
    runs = [given.run(each) for each in sets]
    wanted = leaves(runs[0]())
    ready: dict[str, tuple[How, list[float]]] = {}
    until = time.monotonic() + seconds
    for how in [shipped, *(each for each in given.candidates if each != shipped)]:
        if time.monotonic() > until:
            break
        try:
            if repeats:
                print(f"  {given.name}: {json.dumps(how)}", flush=True)
            with tried(given.kernel, how):
                if agree(leaves(runs[0]()), wanted):
                    ready[json.dumps(how)] = how, [bench.once(runs[0], device)]
        except Exception as error:
            torch.cuda.synchronize()  # what killed the device is not a candidate that does not fit
            if repeats:
                print(f"    {type(error).__name__} {str(error).splitlines()[0][:80]}")
    least = min(times[0] for _, times in ready.values())
    for turn in range(repeats):
        for name, (how, times) in ready.items():
            if times[0] < 1.5 * least or name == json.dumps(shipped):
                with tried(given.kernel, how):
                    times.append(bench.once(runs[turn % len(runs)], device))
    rows = [
        {
            "kernel": given.kernel,
            "case": given.case.name,
            "ms": 1e3 * statistics.median(times[1:] or times),
            "with": how,
        }
        | {"shipped": how == shipped}
        for how, times in ready.values()
    ]
    return sorted(rows, key=lambda row: row["ms"])


def warm(numbers: list[int], workers: int, seconds: float) -> None:
    """Every candidate once, in several processes: Triton keeps on disk what they compile."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(one, number, 0, seconds) for number in numbers]
        wait(waiting, timeout=seconds)
        for each in waiting:
            each.cancel()


def one(number: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """A search by its number: closures do not travel between processes."""
    return search(
        next(itertools.islice(searches(), number, None)), torch.device("cuda"), repeats, seconds
    )


def alone() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def told(given: Search, rows: list[dict[str, Any]]) -> str:
    usual = next((row["ms"] for row in rows if row["shipped"]), float("nan"))
    return f"{given.name}: {usual:.3f} ms shipped, {rows[0]['ms']:.3f} ms with {json.dumps(rows[0]['with'])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument("--kernels", nargs="+", default=[""], help="those whose names begin so")
    parser.add_argument("--shapes", nargs="+", choices=bench.SHAPES, default=list(bench.SHAPES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument(
        "--warm", type=float, default=90, help="seconds to compile in, in several processes"
    )
    parser.add_argument(
        "--seconds", type=float, default=20, help="for each search to try its candidates"
    )
    parser.add_argument(
        "--total", type=float, default=540, help="seconds after which no new search is begun"
    )
    options = parser.parse_args()
    began, found = time.monotonic(), []
    asked = {
        number: given
        for number, given in enumerate(searches())
        if given.kernel.startswith(tuple(options.kernels)) and given.case.shape in options.shapes
    }
    warm(list(asked), options.workers, options.warm)
    print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    process = alone()
    for number, given in asked.items():
        if time.monotonic() - began > options.total:
            print(f"{given.name}: no time was left")
            continue
        try:  # a candidate that kills its process costs its search, and no other
            rows = process.submit(one, number, options.repeats, options.seconds).result()
        except Exception as error:
            print(f"{given.name}: {type(error).__name__} {str(error)[:200]}", flush=True)
            process.shutdown(wait=False)
            process = alone()
            continue
        found += rows
        print(told(given, rows), flush=True)
    process.shutdown()
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"facts": bench.facts(torch.device("cuda")), "rows": found}, indent=1)
    (options.out / "tune.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
