"""Time the kernels beside their peers: `python kernels/bench.py linear window mediator --out
reports/gpu`.

- A correctness gate first: nothing is timed that does not agree with its definition on this
  machine.
- Providers of one case run in turns in one loop; inputs are random and rotated past the L2; on a
  GPU forwards are replayed as CUDA graphs and backwards queued behind a pause, so that launches are
  not what is measured. What a call costs the host has a column of its own.
- The floor of a case is what this device moves and multiplies at best, measured in the same run:
  bytes that must be read and written over its copy rate, or products over its matmul rate,
  whichever is longer.
- Useful products are those the definition needs; executed ones are what tiles make of them.
"""

import argparse
import csv
import functools
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
from linattn_kernels import (
    backend,
    flops,
    launch,
    linear_attention,
    mediator_attention,
    reference,
    use_backend,
    window_attention,
)


class Unfit(ValueError):
    """A provider has nothing to say of a case; the message says why."""


# heads, head_dim
SHAPES = {"flux": (24, 128), "dit": (16, 72), "sdxl": (10, 64), "sdxl-20": (20, 64)}
MODES = ("forward", "backward", "both")
GRAPHED = 0.02  # seconds of a forward below which launches would show
L2 = 256 << 20  # inputs in turns together exceed this


@dataclass(frozen=True)
class Case:
    kernel: str
    shape: str
    tokens: int
    mode: str = "forward"
    radius: int = 16
    text: int = 0
    count: int = 64
    dtype: torch.dtype = torch.bfloat16

    @property
    def heads(self) -> int:
        return SHAPES[self.shape][0]

    @property
    def dim(self) -> int:
        return SHAPES[self.shape][1]

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns nearest a square."""
        rows = next(
            rows for rows in range(math.isqrt(self.tokens), 0, -1) if self.tokens % rows == 0
        )
        return rows, self.tokens // rows

    @property
    def name(self) -> str:
        more = {"window": f" r={self.radius} text={self.text}", "mediator": f" m={self.count}"}.get(
            self.kernel, ""
        )
        return f"{self.kernel}{more} {self.shape} {self.tokens} {self.mode}"

    # What the definition needs

    @property
    def tensor(self) -> int:
        """Bytes of one of q, k, v, out."""
        return (self.tokens + self.text) * self.heads * self.dim * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Tensors that must be moved, each once; softmax needs its result again, linear attention
        does not.
        """
        forward, backward = {"linear": (4, 7), "window": (4, 8), "mediator": (4, 8)}[self.kernel]
        return (
            self.tensor
            * {"forward": forward, "backward": backward, "both": forward + backward}[self.mode]
        )

    @property
    def useful(self) -> int:
        """Floating-point operations of the products in the definition."""
        channels = self.heads * self.dim
        if self.kernel == "linear":
            forward, backward = (
                4 * self.tokens * self.dim * channels,
                8 * self.tokens * self.dim * channels,
            )
        elif self.kernel == "mediator":
            forward = 8 * self.tokens * self.count * channels
            backward = 5 * forward // 2
        else:
            forward = 4 * channels * flops.useful_pairs(*self.sides, self.radius, self.text)
            backward = 5 * forward // 2
        return {"forward": forward, "backward": backward, "both": forward + backward}[self.mode]


def executed(case: Case, device: torch.device) -> int | None:
    """What the tiles of the window's forward do; None where it is what is useful, or is not known."""
    if case.kernel != "window" or case.mode != "forward" or device.type != "cuda":
        return None
    from linattn_kernels.tiles import parts

    how = launch.config(
        "window_forward", torch.empty(0, dtype=case.dtype, device=device), case.dim, case.tokens
    )
    found = flops.tiled_pairs("triton", *case.sides, case.radius, case.text, 0, how)
    return 4 * case.heads * sum(parts(case.dim)) * found


# Inputs
# ---------------------------------------------------------------------------------------------


def inputs(case: Case, device: torch.device, copies: int, seed: int = 0) -> list[list[Tensor]]:
    """Random q, k, v (and mediators), as slices of one projection; several sets, so that none stays
    in the cache.
    """
    draw = torch.Generator(device).manual_seed(seed)
    made = []
    for _ in range(copies):
        shape = (1, case.tokens + case.text, 3, case.heads, case.dim)
        q, k, v = torch.randn(shape, generator=draw, device=device, dtype=case.dtype).unbind(2)
        made.append([q, k, v])
        if case.kernel == "mediator":
            step = max(1, case.tokens // case.count)
            made[-1].append(q[:, ::step][:, : case.count].contiguous())
    return made


# Providers: name -> what it computes for a case, or the reason why not
# -----------------------------------------------


def ours(case: Case) -> Callable[..., Tensor]:
    if case.kernel == "linear":
        return linear_attention
    if case.kernel == "mediator":
        return mediator_attention
    height, width = case.sides
    place = {"height": height, "width": width, "radius": case.radius, "text": case.text}
    return lambda q, k, v: window_attention(q, k, v, **place)


def dense(kind: SDPBackend) -> Callable[[Case], Callable[..., Tensor]]:
    def provider(case: Case) -> Callable[..., Tensor]:
        def call(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(
                    *(each.transpose(1, 2) for each in (q, k, v))
                ).transpose(1, 2)

        return call

    return provider


def sdpa(case: Case) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            *(each.transpose(1, 2) for each in (q, k, v))
        ).transpose(1, 2)

    return call


def eager(case: Case) -> Callable[..., Tensor]:
    """The form that papers publish, in plain PyTorch."""
    if case.kernel == "linear":

        def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
            q, k = F.elu(q) + 1, F.elu(k) + 1
            z = 1 / (q @ k.mean(2, keepdim=True).mT + 1e-4)
            return (q @ ((k.mT * k.shape[2] ** -0.5) @ (v * v.shape[2] ** -0.5)) * z).transpose(
                1, 2
            )

        return linear
    if case.kernel == "mediator":

        def agent(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
            q, k, v, m = (each.transpose(1, 2) for each in (q, k, v, m))
            scale = q.shape[3] ** -0.5
            told = (m * scale @ k.mT).softmax(-1) @ v
            return ((q * scale @ m.mT).softmax(-1) @ told).transpose(1, 2)

        return agent
    if case.tokens > 1 << 13:
        raise Unfit("a mask of N x N")
    seen = reference.window_mask(*case.sides, case.radius)
    seen = F.pad(seen, (case.text, 0, case.text, 0), value=True).to(
        "cuda" if torch.cuda.is_available() else "cpu"
    )

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2)

    return masked


def compiled(case: Case) -> Callable[..., Tensor]:
    torch._functorch.config.donated_buffer = False  # a backward is timed more than once
    return torch.compile(eager(case))


def two_sdpa(case: Case) -> Callable[..., Tensor]:
    if case.kernel != "mediator":
        raise Unfit("for mediators")

    def call(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        q, k, v, m = (each.transpose(1, 2) for each in (q, k, v, m))
        told = F.scaled_dot_product_attention(m, k, v)
        return F.scaled_dot_product_attention(q, m, told).transpose(1, 2)

    return call


def flex(case: Case) -> Callable[..., Tensor]:
    """CLEAR's own way: FlexAttention with the same mask, in raster order."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.kernel != "window":
        raise Unfit("for windows")
    if case.tokens > 1 << 16:
        raise Unfit("its mask is evaluated for every pair")
    (_, width), text, limit = case.sides, case.text, case.radius**2

    def seen(batch, head, i, j):
        y, x, other_y, other_x = (
            (i - text) // width,
            (i - text) % width,
            (j - text) // width,
            (j - text) % width,
        )
        near = (y - other_y) * (y - other_y) + (x - other_x) * (x - other_x) < limit
        return near | (i < text) | (j < text)

    total = case.tokens + text
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = torch.compile(create_block_mask)(seen, None, None, total, total, device=device)
    run = torch.compile(flex_attention)
    return lambda q, k, v: run(
        *(each.transpose(1, 2) for each in (q, k, v)), block_mask=mask
    ).transpose(1, 2)


def fla(case: Case) -> Callable[..., Tensor]:
    """flash-linear-attention from PyPI, causal: the nearest published kernel; its numbers are not
    ours.
    """
    if case.kernel != "linear":
        raise Unfit("for linear attention")
    from fla.ops.linear_attn import chunk_linear_attn

    return lambda q, k, v: chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, normalize=False)[0]


PROVIDERS: dict[str, Callable[[Case], Callable[..., Tensor]]] = {
    "ours": ours,
    "sdpa": sdpa,
    "sdpa-flash": dense(SDPBackend.FLASH_ATTENTION),
    "sdpa-cudnn": dense(SDPBackend.CUDNN_ATTENTION),
    "sdpa-efficient": dense(SDPBackend.EFFICIENT_ATTENTION),
    "two-sdpa": two_sdpa,
    "flex": flex,
    "eager": eager,
    "compiled": compiled,
    "fla": fla,
}
SAME = ("ours", "two-sdpa", "flex", "eager", "compiled")  # compute what the definition says


# The gate
# ---------------------------------------------------------------------------------------------


def gate(case: Case, name: str, device: torch.device) -> str:
    """Why a provider must not be timed: it disagrees with the definition at 1,024 tokens, or its
    gradients do.
    """
    if name not in SAME:
        return ""
    small = replace(case, tokens=1024)
    given = inputs(small, device, 1, seed=3)[0]
    with use_backend("reference"):
        exact = outcome(small, ours(small), [each.double() for each in given])
    found = outcome(small, PROVIDERS[name](small), given)
    bound = 8e-3 if case.dtype == torch.bfloat16 else 1e-5
    for what, allowed in (("result", bound), ("gradients", 2 * bound)):
        if what in exact:
            error = ((found[what] - exact[what]).norm() / exact[what].norm()).item()
            if not error < allowed:
                return f"differs from the definition in its {what} by {error:.1e}, more than {allowed:g}"
    return ""


def outcome(case: Case, call: Callable[..., Tensor], given: list[Tensor]) -> dict[str, Tensor]:
    """What a call gives: its result and, where the case times a backward, all gradients in one row
    of numbers.
    """
    if case.mode == "forward":
        return {"result": call(*given).double()}
    leaves = [each.detach().requires_grad_() for each in given]
    out = call(*leaves)
    told = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).view(
        out.shape
    )
    told = told.to(case.dtype).to(out.dtype)  # the same for all, rounded as the case is
    slopes = torch.autograd.grad(out, leaves, told)
    return {
        "result": out.detach().double(),
        "gradients": torch.cat([each.double().flatten() for each in slopes]),
    }


# Timing
# ---------------------------------------------------------------------------------------------


def steps(
    case: Case, call: Callable[..., Tensor], sets: Sequence[list[Tensor]]
) -> list[Callable[[], Any]]:
    """One call a set of inputs, in the case's mode."""
    if case.mode == "forward":

        def forward(given: list[Tensor]) -> Callable[[], Any]:
            def run() -> Tensor:
                with torch.no_grad():
                    return call(*given)

            return run

        return [forward(given) for given in sets]
    made = []
    for given in sets:
        leaves = [each.detach().requires_grad_() for each in given]
        out = call(*leaves)
        told = torch.randn_like(out)
        if case.mode == "backward":
            made.append(
                lambda out=out, leaves=leaves, told=told: torch.autograd.grad(
                    out, leaves, told, retain_graph=True, allow_unused=True
                )
            )
        else:
            made.append(
                lambda leaves=leaves, told=told: torch.autograd.grad(
                    call(*leaves), leaves, told, allow_unused=True
                )
            )
    return made


def graphed(runs: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The same as replays of CUDA graphs."""
    made = []
    for run in runs:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        made.append(graph.replay)
    return made


def once(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, by the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # two milliseconds in which the host queues the call: its own time is not measured
    torch.cuda._sleep(4_000_000)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def measure(
    case: Case, names: Sequence[str], device: torch.device, repeats: int, budget: float
) -> list[dict[str, Any]]:
    """A row a provider; those that cannot run say why."""
    torch._dynamo.reset()  # a peer that was compiled too often would silently run uncompiled
    copies = max(1, min(64, L2 // max(1, 3 * case.tensor) + 1)) if device.type == "cuda" else 1
    sets, rows, ready = inputs(case, device, copies), [], {}
    for name in names:
        try:
            call = PROVIDERS[name](case)
            if wrong := gate(case, name, device):
                rows.append(row(case, name, device, skipped=wrong))
                continue
            runs = steps(case, call, sets)
            first = [once(runs[0], device) for _ in range(2)][1]  # the first one compiled
            memory = peak(runs[0], device)
            graph = device.type == "cuda" and case.mode == "forward" and first < GRAPHED
            queue = queueing(runs[0], device)
            ready[name] = (
                graphed(runs) if graph else runs,
                first,
                {"graph": graph, "memory": memory, "host": queue},
            )
        except Exception as reason:  # a peer that cannot run must not stop the others
            rows.append(
                row(
                    case,
                    name,
                    device,
                    skipped=f"{type(reason).__name__}: {(str(reason) or '-').splitlines()[0][:120]}",
                )
            )
            with suppress(Exception):
                torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(repeats):
        for name, (runs, first, _) in ready.items():
            if not turn or first * turn <= budget:
                times[name].append(once(runs[turn % len(runs)], device))
    for name, seconds in times.items():
        rows.append(row(case, name, device, seconds=seconds, **ready[name][2]))
    return rows


def peak(run: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def queueing(run: Callable[[], Any], device: torch.device) -> float | None:
    """Seconds of the host for one call, while the GPU has other work."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    return min(times)


@functools.cache
def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second of a copy, operations a second of a product) of this device, the best of
    some.
    """
    cuda = device.type == "cuda"
    size = (1 << 29) if cuda else (1 << 24)
    source = torch.randn(size, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    copy = min(once(lambda: target.copy_(source), device) for _ in range(12))
    side = 8192 if cuda else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    product = min(once(lambda: a @ a, device) for _ in range(12))
    return 2 * source.numel() * 4 / copy, 2 * side**3 / product


def floor(case: Case, device: torch.device) -> float:
    rate, products = ceilings(device, case.dtype)
    return max(case.bytes / rate, case.useful / products)


def row(
    case: Case, provider: str, device: torch.device, seconds: Sequence[float] = (), **more: Any
) -> dict[str, Any]:
    found = {
        "case": case.name,
        "kernel": case.kernel,
        "shape": case.shape,
        "tokens": case.tokens,
        "mode": case.mode,
    }
    found |= {"provider": provider, "skipped": more.pop("skipped", "")}
    if not seconds:
        return found
    median = statistics.median(seconds)
    done = executed(case, device) if provider == "ours" else None
    return found | {
        "ms": 1e3 * median,
        "low": 1e3 * min(seconds),
        "high": 1e3 * max(seconds),
        "repeats": len(seconds),
        "floor_ms": 1e3 * floor(case, device),
        "of_floor": floor(case, device) / median,
        "useful_tflops": case.useful / median / 1e12,
        "executed_tflops": "" if done is None else done / median / 1e12,
        "tb_per_s": case.bytes / median / 1e12,
        "memory_mb": "" if more.get("memory") is None else more["memory"] / 2**20,
        "host_us": "" if more.get("host") is None else 1e6 * more["host"],
        "graph": more.get("graph", False),
    }


# Running
# ---------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[Case]:
    for kernel in options.kernels:
        for shape in options.shapes:
            for tokens in options.tokens:
                for mode in options.modes:
                    case = Case(kernel, shape, tokens, mode, dtype=dtype)
                    if kernel == "window":
                        text = 512 if shape == "flux" and options.device.type == "cuda" else 0
                        yield from (
                            replace(case, radius=radius, text=text) for radius in options.radii
                        )
                    elif kernel == "mediator":
                        yield from (replace(case, count=count) for count in options.counts)
                    else:
                        yield case


def facts(device: torch.device) -> dict[str, str]:
    """Beside every number."""
    commit = os.environ.get("LINATTN_COMMIT", "")
    with suppress(OSError):
        git = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = commit or git.stdout.strip()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    with suppress(ImportError):
        import triton

        versions["triton"] = triton.__version__
    hardware = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.processor() or 'CPU'}"
    )
    threads = {} if device.type == "cuda" else {"threads": str(torch.get_num_threads())}
    path = backend(torch.zeros(1, device=device)).path
    return {
        "date": str(date.today()),
        "commit": commit,
        "hardware": hardware,
        "path": path,
        **threads,
        **versions,
    }


def told(found: dict[str, Any]) -> str:
    if found["skipped"]:
        return f"{found['case']:<44}{found['provider']:<16}skipped: {found['skipped']}"
    rate = f"{found['executed_tflops']:.0f}" if found["executed_tflops"] != "" else "-"
    return (
        f"{found['case']:<44}{found['provider']:<16}{found['ms']:>10.3f} ms "
        f"{100 * found['of_floor']:>5.0f} % of floor "
        f"{found['useful_tflops']:>7.1f} useful {rate:>5} executed TFLOP/s "
        f"{found['tb_per_s']:>6.2f} TB/s"
    )


def write(rows: Sequence[dict[str, Any]], known: dict[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.csv"
    names = list(dict.fromkeys(name for found in rows for name in found)) + list(known)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**found, **known} for found in rows)
    return path


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Time against tokens for each kernel, shape and mode, the floor as a line."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    made = []
    timed = [found for found in rows if not found["skipped"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in timed:
        groups.setdefault(found["case"].replace(f" {found['tokens']} ", " "), []).append(found)
    for name, group in groups.items():
        figure, axes = pyplot.subplots(figsize=(5, 3.5))
        for provider in dict.fromkeys(found["provider"] for found in group):
            points = sorted(
                (found["tokens"], found["ms"]) for found in group if found["provider"] == provider
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=provider)
        floors = sorted({(found["tokens"], found["floor_ms"]) for found in group})
        axes.plot(*zip(*floors, strict=True), color="black", linestyle="--", label="floor")
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=name)
        axes.legend(fontsize=7)
        figure.tight_layout()
        made.append(folder / f"{name.replace(' ', '-').replace('=', '')}.png")
        figure.savefig(made[-1], dpi=100)
        pyplot.close(figure)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", default=["linear", "window", "mediator"])
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(SHAPES) if cuda else ["sdxl"]
    )
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20][: 6 if cuda else 2],
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        default=list(PROVIDERS) if cuda else ["ours", "sdpa", "eager"],
    )
    parser.add_argument("--radii", type=int, nargs="+", default=[8, 16, 32] if cuda else [8])
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 196, 1024] if cuda else [64])
    parser.add_argument("--repeats", type=int, default=30 if cuda else 5)
    parser.add_argument(
        "--budget", type=float, default=1.0, help="seconds of repeats a provider and case"
    )
    parser.add_argument(
        "--total", type=float, default=math.inf, help="seconds after which no new case is begun"
    )
    parser.add_argument("--out", type=Path, help="a folder for bench.csv and the plots")
    options = parser.parse_args(arguments)
    for name in options.kernels:
        if name not in ("linear", "window", "mediator"):
            parser.error(f"no kernel {name!r}; choose from linear, window, mediator")
    options.device = torch.device("cuda" if cuda else "cpu")
    known = facts(options.device)
    print(", ".join(f"{name} {value}" for name, value in known.items()), flush=True)
    rows, began = [], time.monotonic()
    for case in plan(options, torch.bfloat16 if cuda else torch.float32):
        if time.monotonic() - began > options.total:
            rows.append(
                row(case, "all", options.device, skipped=f"the run's {options.total:g} s were over")
            )
            continue
        dense_is_slow = case.tokens > 1 << 17
        names = [
            name for name in options.providers if not (dense_is_slow and name.startswith("sdpa"))
        ]
        for found in measure(case, names, options.device, options.repeats, options.budget):
            rows.append(found)
            print(told(found), flush=True)
    if options.out:
        print(
            f"Written: {write(rows, known, options.out)} and {len(draw(rows, options.out))} plots"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
