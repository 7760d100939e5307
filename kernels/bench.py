"""Time the kernels beside their peers: `python kernels/bench.py linear --out reports/gpu`.

- A correctness gate comes first: a provider that disagrees with the definition on this machine is
  not timed.
- Providers of one case run in turns in one loop. Inputs are random and rotated, so that they are
  not in the L2. On a GPU forwards are replayed as CUDA graphs and backwards queued behind a pause,
  so that launches are not part of the time; what a call costs the host has a column of its own.
- The floor of a case is the time that its bytes or its products, whichever is longer, take at the
  best rates of this device for copies and matmuls, measured in the same run.
- Useful products are those the definition needs; executed ones are those of the tiles.
"""

import argparse
import csv
import functools
import itertools
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
    """Raised by a provider that cannot run a case, with the reason."""


Call = Callable[..., Tensor]

SHAPES = {  # (heads, head_dim)
    "flux": (24, 128),
    "dit": (16, 72),
    "sdxl": (10, 64),
    "sdxl-20": (20, 64),
}
MODES = ("forward", "backward", "both")
GRAPHED = 0.02  # a forward that takes fewer seconds is replayed as a CUDA graph
L2 = 256 << 20  # bytes that the rotated inputs together exceed


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
        """Return the rows and columns of a picture as nearly square as the tokens allow."""
        height = math.isqrt(self.tokens)
        while self.tokens % height:
            height -= 1
        return height, self.tokens // height

    @property
    def name(self) -> str:
        options = ""
        if self.kernel == "window":
            options = f" r={self.radius} text={self.text}"
        elif self.kernel == "mediator":
            options = f" m={self.count}"
        return f"{self.kernel}{options} {self.shape} {self.tokens} {self.mode}"

    # What the definition needs

    @property
    def tensor(self) -> int:
        """Return the bytes of one of q, k, v, out."""
        return (self.tokens + self.text) * self.heads * self.dim * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Return the bytes of all tensors that must be moved, each once.

        The backward of softmax reads its output again, that of linear attention does not.
        """
        forward, backward = (4, 7) if self.kernel == "linear" else (4, 8)
        return self.tensor * self._of_mode(forward, backward)

    @property
    def useful(self) -> int:
        """Return the floating-point operations of the products in the definition."""
        channels = self.heads * self.dim
        if self.kernel == "linear":
            forward = 4 * self.tokens * self.dim * channels
            return self._of_mode(forward, 2 * forward)
        if self.kernel == "mediator":
            forward = 8 * self.tokens * self.count * channels
        else:
            forward = 4 * channels * flops.useful_pairs(*self.sides, self.radius, self.text)
        return self._of_mode(forward, 5 * forward // 2)

    def _of_mode(self, forward: int, backward: int) -> int:
        return {"forward": forward, "backward": backward, "both": forward + backward}[self.mode]


def executed(case: Case, device: torch.device) -> int | None:
    """Return the operations of the tiles of a window's forward, None for all other cases."""
    if case.kernel != "window" or case.mode != "forward" or device.type != "cuda":
        return None
    from linattn_kernels.tiles import parts

    like = torch.empty(0, dtype=case.dtype, device=device)
    config = launch.config("window_forward", like, case.dim, case.tokens)
    pairs = flops.tiled_pairs("triton", *case.sides, case.radius, case.text, 0, config)
    return 4 * case.heads * sum(parts(case.dim)) * pairs


# Inputs
# ---------------------------------------------------------------------------------------------


def inputs(case: Case, device: torch.device, copies: int, seed: int = 0) -> list[list[Tensor]]:
    """Draw sets of q, k, v (and mediators), each as slices of one projection.

    There are several sets, so that none stays in the cache.
    """
    generator = torch.Generator(device).manual_seed(seed)
    sets = []
    for _ in range(copies):
        shape = (1, case.tokens + case.text, 3, case.heads, case.dim)
        q, k, v = torch.randn(shape, generator=generator, device=device, dtype=case.dtype).unbind(2)
        sets.append([q, k, v])
        if case.kernel == "mediator":
            step = max(1, case.tokens // case.count)
            sets[-1].append(q[:, ::step][:, : case.count].contiguous())
    return sets


# Providers: each returns a function of a case's inputs, or raises Unfit with the reason
# -----------------------------------------------


def heads_first(*tensors: Tensor) -> list[Tensor]:
    """Return (batch, tokens, heads, dim) as (batch, heads, tokens, dim), or the other way round."""
    return [tensor.transpose(1, 2) for tensor in tensors]


def ours(case: Case) -> Call:
    if case.kernel == "linear":
        return linear_attention
    if case.kernel == "mediator":
        return mediator_attention
    height, width = case.sides
    options = {"height": height, "width": width, "radius": case.radius, "text": case.text}
    return lambda q, k, v: window_attention(q, k, v, **options)


def sdpa(case: Case) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor, *mediators: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*heads_first(q, k, v)).transpose(1, 2)

    return call


def dense(backend: SDPBackend) -> Callable[[Case], Call]:
    def provider(case: Case) -> Call:
        def call(*tensors: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return sdpa(case)(*tensors)

        return call

    return provider


def eager_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = heads_first(q, k, v)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = 1 / (q @ k.mean(2, keepdim=True).mT + 1e-4)
    state = (k.mT * k.shape[2] ** -0.5) @ (v * v.shape[2] ** -0.5)
    return (q @ state * z).transpose(1, 2)


def eager_mediator(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    q, k, v, m = heads_first(q, k, v, m)
    scale = q.shape[3] ** -0.5
    gathered = (m * scale @ k.mT).softmax(-1) @ v
    return ((q * scale @ m.mT).softmax(-1) @ gathered).transpose(1, 2)


def eager_window(case: Case) -> Call:
    if case.tokens > 1 << 13:
        raise Unfit("a mask of N x N")
    visible = reference.window_mask(*case.sides, case.radius)
    visible = F.pad(visible, (case.text, 0, case.text, 0), value=True)
    visible = visible.to("cuda" if torch.cuda.is_available() else "cpu")

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*heads_first(q, k, v), visible).transpose(1, 2)

    return masked


def eager(case: Case) -> Call:
    """Return the form that papers publish, in plain PyTorch."""
    if case.kernel == "window":
        return eager_window(case)
    return eager_linear if case.kernel == "linear" else eager_mediator


def compiled(case: Case) -> Call:
    torch._functorch.config.donated_buffer = False  # a backward is timed more than once
    return torch.compile(eager(case))


def two_sdpa(case: Case) -> Call:
    if case.kernel != "mediator":
        raise Unfit("for mediators")

    def call(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        q, k, v, m = heads_first(q, k, v, m)
        gathered = F.scaled_dot_product_attention(m, k, v)
        return F.scaled_dot_product_attention(q, m, gathered).transpose(1, 2)

    return call


def flex(case: Case) -> Call:
    """Return FlexAttention with the same mask in raster order, as CLEAR itself runs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if case.kernel != "window":
        raise Unfit("for windows")
    if case.tokens > 1 << 16:
        raise Unfit("its mask is evaluated for every pair")
    (_, width), text, limit = case.sides, case.text, case.radius**2

    def visible(batch, head, i, j):
        dy = (i - text) // width - (j - text) // width
        dx = (i - text) % width - (j - text) % width
        return (dy * dy + dx * dx < limit) | (i < text) | (j < text)

    total = case.tokens + text
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = torch.compile(create_block_mask)(visible, None, None, total, total, device=device)
    run = torch.compile(flex_attention)
    return lambda q, k, v: run(*heads_first(q, k, v), block_mask=mask).transpose(1, 2)


def fla(case: Case) -> Call:
    """Return flash-linear-attention's causal form, the nearest published kernel.

    What it computes differs from ours, so that only its time is compared.
    """
    if case.kernel != "linear":
        raise Unfit("for linear attention")
    from fla.ops.linear_attn import chunk_linear_attn

    return lambda q, k, v: chunk_linear_attn(F.elu(q) + 1, F.elu(k) + 1, v, normalize=False)[0]


PROVIDERS: dict[str, Callable[[Case], Call]] = {
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
    """Return why a provider must not be timed, or "".

    It must not where its result, or its gradients, differ from the definition's at 1,024 tokens.
    """
    if name not in SAME:
        return ""
    small = replace(case, tokens=1024)
    (tensors,) = inputs(small, device, 1, seed=3)
    with use_backend("reference"):
        exact = outcome(small, ours(small), [tensor.double() for tensor in tensors])
    results = outcome(small, PROVIDERS[name](small), tensors)
    bound = 8e-3 if case.dtype == torch.bfloat16 else 1e-5
    bounds = {"result": bound, "gradients": 2 * bound}
    for output, wanted in exact.items():
        error = ((results[output] - wanted).norm() / wanted.norm()).item()
        if not error < bounds[output]:
            return (
                f"differs from the definition in its {output} by {error:.1e}, more than "
                f"{bounds[output]:g}"
            )
    return ""


def outcome(case: Case, call: Call, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return a call's result and, where the case times a backward, all gradients in one vector."""
    if case.mode == "forward":
        return {"result": call(*tensors).double()}
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    grad_out = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64)
    # The same gradient for all providers, rounded to the case's precision.
    grad_out = grad_out.view(out.shape).to(case.dtype).to(out.dtype)
    grads = torch.autograd.grad(out, leaves, grad_out)
    return {
        "result": out.detach().double(),
        "gradients": torch.cat([grad.double().flatten() for grad in grads]),
    }


# Timing
# ---------------------------------------------------------------------------------------------


def steps(case: Case, call: Call, sets: Sequence[list[Tensor]]) -> list[Callable[[], Any]]:
    """Return a function without arguments for each set of inputs, which runs the case's mode."""
    step = {"forward": forward_step, "backward": backward_step, "both": both_step}[case.mode]
    return [step(call, tensors) for tensors in sets]


def forward_step(call: Call, tensors: list[Tensor]) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.no_grad():
            return call(*tensors)

    return run


def backward_step(call: Call, tensors: list[Tensor]) -> Callable[[], Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    grad_out = torch.randn_like(out)
    options = {"retain_graph": True, "allow_unused": True}
    return lambda: torch.autograd.grad(out, leaves, grad_out, **options)


def both_step(call: Call, tensors: list[Tensor]) -> Callable[[], Any]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    grad_out = torch.randn_like(call(*leaves))
    return lambda: torch.autograd.grad(call(*leaves), leaves, grad_out, allow_unused=True)


def graphed(runs: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Return functions that replay CUDA graphs of the given ones."""
    replays = []
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
        replays.append(graph.replay)
    return replays


def once(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, by the device's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(4_000_000)  # two milliseconds, in which the host queues the call
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Ready:
    """A provider that passed the gate and ran."""

    runs: Sequence[Callable[[], Any]]  # one for each set of inputs
    first: float  # seconds of its first run once compiled
    columns: dict[str, Any]


def measure(
    case: Case, names: Sequence[str], device: torch.device, repeats: int, budget: float
) -> list[dict[str, Any]]:
    """Return an entry of the table for each provider; one that cannot run says why."""
    torch._dynamo.reset()  # a peer that was compiled too often would silently run uncompiled
    copies = max(1, min(64, L2 // max(1, 3 * case.tensor) + 1)) if device.type == "cuda" else 1
    sets = inputs(case, device, copies)
    entries: list[dict[str, Any]] = []
    ready: dict[str, Ready] = {}
    for name in names:
        try:
            call = PROVIDERS[name](case)
            if wrong := gate(case, name, device):
                entries.append(new_entry(case, name, device, skipped=wrong))
            else:
                ready[name] = prepare(case, call, device, sets)
        except Exception as error:  # a peer that cannot run must not stop the others
            message = (str(error) or "-").splitlines()[0][:120]
            reason = f"{type(error).__name__}: {message}"
            entries.append(new_entry(case, name, device, skipped=reason))
            with suppress(Exception):
                torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(repeats):
        for name, provider in ready.items():
            if not turn or provider.first * turn <= budget:
                run = provider.runs[turn % len(provider.runs)]
                times[name].append(once(run, device))
    for name, seconds in times.items():
        entries.append(new_entry(case, name, device, seconds=seconds, **ready[name].columns))
    return entries


def prepare(case: Case, call: Call, device: torch.device, sets: Sequence[list[Tensor]]) -> Ready:
    """Run a provider until it is compiled, and measure its memory and its time on the host."""
    runs = steps(case, call, sets)
    once(runs[0], device)  # compiles
    first = once(runs[0], device)
    memory = peak(runs[0], device)
    graph = device.type == "cuda" and case.mode == "forward" and first < GRAPHED
    columns = {"graph": graph, "memory": memory, "host": queueing(runs[0], device)}
    return Ready(graphed(runs) if graph else runs, first, columns)


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
    """Return the host's seconds for one call, while the GPU is busy with other work."""
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
    """Return the device's best (bytes a second of a copy, operations a second of a product)."""
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
    """Return the least seconds that this device could take for a case."""
    rate, products = ceilings(device, case.dtype)
    return max(case.bytes / rate, case.useful / products)


def new_entry(
    case: Case,
    provider: str,
    device: torch.device,
    seconds: Sequence[float] = (),
    skipped: str = "",
    memory: int | None = None,
    host: float | None = None,
    graph: bool = False,
) -> dict[str, Any]:
    """Return a row of bench.csv."""
    columns = {
        "case": case.name,
        "kernel": case.kernel,
        "shape": case.shape,
        "tokens": case.tokens,
        "mode": case.mode,
        "provider": provider,
        "skipped": skipped,
    }
    if not seconds:
        return columns
    median = statistics.median(seconds)
    executed_flops = executed(case, device) if provider == "ours" else None
    return columns | {
        "ms": 1e3 * median,
        "low": 1e3 * min(seconds),
        "high": 1e3 * max(seconds),
        "repeats": len(seconds),
        "floor_ms": 1e3 * floor(case, device),
        "of_floor": floor(case, device) / median,
        "useful_tflops": case.useful / median / 1e12,
        "executed_tflops": "" if executed_flops is None else executed_flops / median / 1e12,
        "tb_per_s": case.bytes / median / 1e12,
        "memory_mb": "" if memory is None else memory / 2**20,
        "host_us": "" if host is None else 1e6 * host,
        "graph": graph,
    }


# Running
# ---------------------------------------------------------------------------------------------


def plan(options: argparse.Namespace, dtype: torch.dtype) -> Iterator[Case]:
    names = (options.kernels, options.shapes, options.tokens, options.modes)
    for kernel, shape, tokens, mode in itertools.product(*names):
        case = Case(kernel, shape, tokens, mode, dtype=dtype)
        if kernel == "window":
            text = 512 if shape == "flux" and options.device.type == "cuda" else 0
            for radius in options.radii:
                yield replace(case, radius=radius, text=text)
        elif kernel == "mediator":
            for count in options.counts:
                yield replace(case, count=count)
        else:
            yield case


def facts(device: torch.device) -> dict[str, str]:
    """Return what is written beside every number: date, commit, hardware and versions."""
    cuda = device.type == "cuda"
    commit = os.environ.get("LINATTN_COMMIT", "")
    with suppress(OSError):
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        git = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = commit or git.stdout.strip()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    with suppress(ImportError):
        import triton

        versions["triton"] = triton.__version__
    hardware = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
    threads = {} if cuda else {"threads": str(torch.get_num_threads())}
    return {
        "date": str(date.today()),
        "commit": commit,
        "hardware": hardware,
        "path": backend(torch.zeros(1, device=device)).path,
        **threads,
        **versions,
    }


def as_line(entry: dict[str, Any]) -> str:
    """Return an entry as a line of text."""
    if entry["skipped"]:
        return f"{entry['case']:<44}{entry['provider']:<16}skipped: {entry['skipped']}"
    rate = f"{entry['executed_tflops']:.0f}" if entry["executed_tflops"] != "" else "-"
    return (
        f"{entry['case']:<44}{entry['provider']:<16}{entry['ms']:>10.3f} ms "
        f"{100 * entry['of_floor']:>5.0f} % of floor "
        f"{entry['useful_tflops']:>7.1f} useful {rate:>5} executed TFLOP/s "
        f"{entry['tb_per_s']:>6.2f} TB/s"
    )


def write(entries: Sequence[dict[str, Any]], run_facts: dict[str, str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.csv"
    names = list(dict.fromkeys(name for entry in entries for name in entry)) + list(run_facts)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**entry, **run_facts} for entry in entries)
    return path


def draw(entries: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Plot time against tokens for each kernel, shape and mode, the floor as a line."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    paths = []
    timed = [entry for entry in entries if not entry["skipped"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in timed:
        groups.setdefault(entry["case"].replace(f" {entry['tokens']} ", " "), []).append(entry)
    for name, group in groups.items():
        figure, axes = pyplot.subplots(figsize=(5, 3.5))
        for provider in dict.fromkeys(entry["provider"] for entry in group):
            points = sorted(
                (entry["tokens"], entry["ms"]) for entry in group if entry["provider"] == provider
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=provider)
        floors = sorted({(entry["tokens"], entry["floor_ms"]) for entry in group})
        axes.plot(*zip(*floors, strict=True), color="black", linestyle="--", label="floor")
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=name)
        axes.legend(fontsize=7)
        figure.tight_layout()
        paths.append(folder / f"{name.replace(' ', '-').replace('=', '')}.png")
        figure.savefig(paths[-1], dpi=100)
        pyplot.close(figure)
    return paths


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
    run_facts = facts(options.device)
    print(", ".join(f"{name} {value}" for name, value in run_facts.items()), flush=True)
    entries, began = [], time.monotonic()
    for case in plan(options, torch.bfloat16 if cuda else torch.float32):
        if time.monotonic() - began > options.total:
            late = f"the run's {options.total:g} s were over"
            entries.append(new_entry(case, "all", options.device, skipped=late))
            continue
        names = options.providers
        if case.tokens > 1 << 17:  # dense attention would take minutes
            names = [name for name in names if not name.startswith("sdpa")]
        for entry in measure(case, names, options.device, options.repeats, options.budget):
            entries.append(entry)
            print(as_line(entry), flush=True)
    if options.out:
        path = write(entries, run_facts, options.out)
        print(f"Written: {path} and {len(draw(entries, options.out))} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
