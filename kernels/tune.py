"""Search tile sizes and launch settings: `python kernels/tune.py --out reports/gpu`, on a GPU.

- Candidates of one kernel run on one case, in turns in one loop. Each is first compared with the
  results of the shipped one: a candidate that differs, or does not run, is not timed. One that
  spills is timed; `kernels/builds.py` shows the spills of what ships.
- The shipped tables are not written: the best candidates are printed as lines to paste, beside what
  is shipped now.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
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

Config = dict[str, int]
Configs = tuple[Config, ...]
Call = Callable[..., Any]


@dataclass(frozen=True)
class Search:
    """A kernel on one case: what runs it, and the candidates beside what is shipped."""

    kernel: str
    case: bench.Case
    run: Callable[[list[Tensor]], Call]
    candidates: Configs

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.run.__name__} {self.case.name}"


# What runs each kernel
# ---------------------------------------------------------------------------------------------


def state(tensors: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    _, k, v = tensors
    return lambda: linear_triton.state(k, v, None, None, "elu1", 0.0)


def read(tensors: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    q, k, v = tensors
    kv, z, _ = linear_triton.state(k, v, None, None, "elu1", 0.0)
    return lambda: linear_triton.read(q, None, kv, z, "elu1", 0.0, 1e-4, True)


def read_backward(tensors: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    q, k, v = tensors
    kv, z, _ = linear_triton.state(k, v, None, None, "elu1", 0.0)
    do = torch.randn_like(v)
    return lambda: linear_triton.read_backward(do, q, None, kv, z, "elu1", 0.0, 1e-4, True)


def state_backward(tensors: list[Tensor]) -> Call:
    from linattn_kernels import linear_triton

    _, k, v = tensors
    kv, z, count = linear_triton.state(k, v, None, None, "elu1", 0.0)
    return lambda: linear_triton.state_backward(kv, z, count, k, v, None, None, "elu1", 0.0)


def window_options(case: bench.Case) -> tuple[Any, ...]:
    return (*case.sides, float(case.radius), case.text, "disc", case.dim**-0.5)


def picture(case: bench.Case) -> Callable[[list[Tensor]], Call]:
    """Return what runs the picture's queries alone; those of text go to another kernel."""

    def run(tensors: list[Tensor]) -> Call:
        from linattn_kernels import window_triton

        q, k, v = tensors
        return lambda: window_triton.window(q, k, v, None, None, *window_options(case), False)[0]

    return run


def window_gradients(case: bench.Case) -> Callable[[list[Tensor]], Call]:
    def run(tensors: list[Tensor]) -> Call:
        from linattn_kernels import window_triton

        q, k, v = tensors
        out, lse = window_triton.window(q, k, v, None, None, *window_options(case), True)
        do = torch.randn_like(out)
        return lambda: window_triton.window_backward(
            do, None, q, k, v, None, None, out, lse, *window_options(case)
        )[:3]

    return run


def text_queries(tensors: list[Tensor]) -> Call:
    """Run 512 queries over all keys, as the text of a window does."""
    from linattn_kernels import mediator_triton

    q, k, v = tensors
    text = q[:, :512]
    return lambda: mediator_triton.gather(text, k, v, None, q.shape[3] ** -0.5)[0]


def gather(tensors: list[Tensor]) -> Call:
    from linattn_kernels import mediator_triton

    q, k, v, mediators = tensors
    return lambda: mediator_triton.gather(mediators, k, v, None, q.shape[3] ** -0.5)[0]


def spread(tensors: list[Tensor]) -> Call:
    from linattn_kernels import mediator_triton

    q, k, v, mediators = tensors
    gathered, _ = mediator_triton.gather(mediators, k, v, None, q.shape[3] ** -0.5)
    return lambda: mediator_triton.spread(q, mediators, gathered, None, q.shape[3] ** -0.5)[0]


def mediator_gradients(tensors: list[Tensor]) -> Call:
    """Run both backwards of mediators: few queries on many keys, and many on few."""
    from linattn_kernels import mediator_triton

    q, k, v, mediators = tensors
    scale = q.shape[3] ** -0.5
    gathered, gather_lse = mediator_triton.gather(mediators, k, v, None, scale)
    out, spread_lse = mediator_triton.spread(q, mediators, gathered, None, scale)
    do = torch.randn_like(out)

    def run() -> tuple[Tensor, ...]:
        dq, dm, d_gathered, _ = mediator_triton.spread_backward(
            do, q, mediators, gathered, None, out, spread_lse, scale
        )
        gradients = mediator_triton.gather_backward(
            d_gathered, mediators, k, v, None, gathered, gather_lse, scale
        )
        return dq, dm, *gradients[:3]

    return run


def grids(names: str, *settings: tuple[int, ...]) -> Configs:
    """Return a configuration for each tuple of settings."""
    return tuple(dict(zip(names.split(), setting, strict=True)) for setting in settings)


def times(configs: Configs, **choices: tuple[int, ...]) -> Configs:
    """Return every configuration with every one of these choices."""
    for name, settings in choices.items():
        configs = tuple({**config, name: setting} for config in configs for setting in settings)
    return configs


# A product has 16 rows a warp or a multiple: with fewer, warps repeat each other's work.
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
    yield Search("softmax_attend", linear["flux"], text_queries, ATTEND)
    for shape in ("dit", "flux", "sdxl"):
        yield Search("softmax_attend", short[shape], gather, ATTEND)
        yield Search("softmax_spread", short[shape], spread, SPREAD)
    for shape in ("flux", "dit", "sdxl"):
        yield Search("window_queries", window[shape], window_gradients(window[shape]), QUERIES)
        yield Search("window_keys", window[shape], window_gradients(window[shape]), KEYS)
        yield Search("softmax_rows", short[shape], mediator_gradients, ROWS)
        yield Search("softmax_columns", short[shape], mediator_gradients, COLUMNS)


# Trying
# ---------------------------------------------------------------------------------------------


@contextmanager
def tried(kernel: str, config: Config | None) -> Generator[None]:
    """Make the kernel take this configuration inside the block."""
    shipped = launch.config

    def patched(name: str, like: Tensor, dim: int, tokens: int = 1) -> Config:
        return config if config is not None and name == kernel else shipped(name, like, dim, tokens)

    launch.config = patched
    try:
        yield
    finally:
        launch.config = shipped


def leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [output for output in outputs if isinstance(output, Tensor)]


def agree(results: list[Tensor], shipped: list[Tensor]) -> bool:
    return all(
        bool((result.float() - wanted.float()).norm() <= 2e-2 * wanted.float().norm())
        for result, wanted in zip(results, shipped, strict=True)
    )


def search(
    trial: Search, device: torch.device, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """Return an entry for each candidate and the shipped configuration, the fastest first."""
    case = trial.case
    copies = max(1, min(8, bench.L2 // max(1, 3 * case.tensor) + 1)) if repeats else 1
    sets = bench.inputs(case, device, copies)
    shipped = launch.config(trial.kernel, sets[0][0], case.dim, case.tokens)
    runs = [trial.run(tensors) for tensors in sets]
    wanted = leaves(runs[0]())
    configs: dict[str, Config] = {}
    times: dict[str, list[float]] = {}
    until = time.monotonic() + seconds
    for config in [shipped, *(other for other in trial.candidates if other != shipped)]:
        if time.monotonic() > until:
            break
        name = json.dumps(config)
        try:
            if repeats:
                print(f"  {trial.name}: {name}", flush=True)
            with tried(trial.kernel, config):
                if agree(leaves(runs[0]()), wanted):
                    times[name] = [bench.once(runs[0], device)]
                    configs[name] = config
        except Exception as error:
            torch.cuda.synchronize()  # raises, and ends the search, if the device itself is lost
            if repeats:
                print(f"    {type(error).__name__} {str(error).splitlines()[0][:80]}")
    least = min(first for first, *_ in times.values())
    for turn in range(repeats):
        for name, config in configs.items():
            if times[name][0] < 1.5 * least or config == shipped:
                with tried(trial.kernel, config):
                    times[name].append(bench.once(runs[turn % len(runs)], device))
    entries = []
    for name, config in configs.items():
        median = statistics.median(times[name][1:] or times[name])
        entry = {"kernel": trial.kernel, "case": case.name, "ms": 1e3 * median, "with": config}
        entries.append(entry | {"shipped": config == shipped})
    return sorted(entries, key=lambda entry: entry["ms"])


def warm(numbers: list[int], workers: int, seconds: float) -> None:
    """Run every candidate once, in several processes, so that Triton's cache on disk has it."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_search, number, 0, seconds) for number in numbers]
        wait(futures, timeout=seconds)
        for future in futures:
            future.cancel()


def run_search(number: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Run a search by its number, since closures do not travel between processes."""
    trial = next(itertools.islice(searches(), number, None))
    return search(trial, torch.device("cuda"), repeats, seconds)


def alone() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def as_line(trial: Search, entries: list[dict[str, Any]]) -> str:
    shipped_ms = next((entry["ms"] for entry in entries if entry["shipped"]), float("nan"))
    best = entries[0]
    return (
        f"{trial.name}: {shipped_ms:.3f} ms shipped, {best['ms']:.3f} ms with "
        f"{json.dumps(best['with'])}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("reports/gpu"))
    parser.add_argument("--kernels", nargs="+", default=[""], help="beginnings of kernels' names")
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
    began, entries = time.monotonic(), []
    requested = {}
    for number, trial in enumerate(searches()):
        named = trial.kernel.startswith(tuple(options.kernels))
        if named and trial.case.shape in options.shapes:
            requested[number] = trial
    warm(list(requested), options.workers, options.warm)
    print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    process = alone()
    for number, trial in requested.items():
        if time.monotonic() - began > options.total:
            print(f"{trial.name}: no time was left")
            continue
        try:  # a candidate that kills its process costs this search only
            results = process.submit(run_search, number, options.repeats, options.seconds).result()
        except Exception as error:
            print(f"{trial.name}: {type(error).__name__} {str(error)[:200]}", flush=True)
            process.shutdown(wait=False)
            process = alone()
            continue
        entries += results
        print(as_line(trial, results), flush=True)
    process.shutdown()
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"facts": bench.facts(torch.device("cuda")), "rows": entries}, indent=1)
    (options.out / "tune.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
