"""Compile every kernel without a GPU and show its resources: `python kernels/builds.py`.

- The library's own launchers run on tensors without memory, for a driver that only names its
  target. Triton compiles each launch for the arguments it would have on that GPU (strides that
  divide by 16, ones) and launches nothing.
- The table has a line for each kernel: registers, spilled bytes, shared memory, and how many of the
  architecture's matrix and copy instructions it has.
- `--json before.json` writes the table; `--compare before.json` builds again and says what differs,
  down to a digest of the PTX without its line numbers. An edit of names and comments changes none.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

sys.path.insert(0, str(Path(__file__).parent))
from linattn_kernels import launch, linear_triton, mediator_triton, tile_triton, window_triton
from linattn_kernels.check import MOST_SOFTMAX

SHARED = {  # bytes of shared memory a program may have, by capability
    (8, 0): 163 << 10,
    (8, 6): 99 << 10,
    (8, 9): 99 << 10,
    (9, 0): 227 << 10,
    (10, 0): 227 << 10,
    (12, 0): 99 << 10,
}
TOKENS = 4096


@dataclass(frozen=True)
class Build:
    kernel: str
    case: str
    capability: tuple[int, int]
    registers: int
    spilled: int
    shared: int
    wgmma: int
    mma: int
    copies: int  # asynchronous ones, TMA or cp.async of 16 bytes
    code: str  # digest of the PTX, see `code_of`

    @property
    def faults(self) -> list[str]:
        """Return what keeps the kernel from being shipped."""
        faults = []
        if self.spilled:
            faults.append(f"{self.spilled} bytes spilled")
        room = SHARED[self.capability]
        if self.shared > room:
            faults.append(f"{self.shared >> 10} KB of shared memory, {room >> 10} on the chip")
        return faults


# Cases: every operation in every precision and at the requested head dims
# ----------------------------------------


def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def projected(dim: int, heads: int, dtype: torch.dtype, count: int = 3) -> list[torch.Tensor]:
    """Return q, k, v as slices of one projection, as models have them."""
    return list(tensor(1, TOKENS, count, heads, dim, dtype=dtype).unbind(2))


def linear(
    dim: int,
    dtype: torch.dtype,
    value_dim: int | None = None,
    normaliser: bool = False,
    masked: bool = False,
    normalise: bool = True,
    feature_map: str = "elu1",
) -> None:
    q, k, v = projected(dim, 8, dtype)
    v = v if value_dim is None else tensor(1, TOKENS, 8, value_dim, dtype=dtype)
    norm_q, norm_k = projected(dim, 8, dtype, 2) if normaliser else (None, None)
    mask = tensor(1, TOKENS, dtype=torch.bool) if masked else None
    options = (feature_map, 0.0, 1e-4, normalise)
    kv, z, count = linear_triton.state(k, v, norm_k, mask, feature_map, 0.0)
    do = linear_triton.read(q, norm_q, kv, z, *options)
    linear_triton.read_backward(do, q, norm_q, kv, z, *options)
    linear_triton.state_backward(kv, z, count, k, v, norm_k, mask, feature_map, 0.0)


def window(
    dim: int,
    dtype: torch.dtype,
    text: int = 512,
    extra: int = 64,
    shape: str = "disc",
    lse: bool = False,
) -> None:
    tokens = text + 64 * 64
    q, k, v = tensor(1, tokens, 3, 8, dim, dtype=dtype).unbind(2)
    extra_kv = [tensor(1, extra, 8, dim, dtype=dtype) if extra else None for _ in range(2)]
    options = (64, 64, 8.0, text, shape, dim**-0.5)
    out, all_lse = window_triton.window(q, k, v, *extra_kv, *options, lse)
    d_lse = all_lse if lse else None
    window_triton.window_backward(out, d_lse, q, k, v, *extra_kv, out, all_lse, *options)


def tile(
    dim: int,
    dtype: torch.dtype,
    side: int = 8,
    text: int = 512,
    means: bool = True,
    least: float = -math.inf,
) -> None:
    q, k, v = tensor(1, text + 64 * 64, 3, 8, dim, dtype=dtype).unbind(2)
    tiles = (64 // side) ** 2
    kept = tensor(1, 8, tiles, tiles // 16, dtype=torch.int64)
    of_means = [tensor(1, tiles, 8, dim, dtype=torch.float32) if means else None for _ in range(2)]
    options = (64, 64, side, text, dim**-0.5, least)
    out, lse, share = tile_triton.tile(q, k, v, *of_means, kept, *options, True)
    d_share = share if means else None
    outputs = (out, lse, share)
    tile_triton.tile_backward(out, None, d_share, q, k, v, *of_means, kept, *outputs, *options)


def mediator(dim: int, dtype: torch.dtype, count: int = 64, bias: bool = False) -> None:
    q, k, v = projected(dim, 8, dtype)
    m, gathered = tensor(1, count, 8, dim, dtype=dtype), tensor(1, count, 8, dim, dtype=dtype)
    inner = tensor(1, 8, count, TOKENS, dtype=dtype) if bias else None
    outer = tensor(1, 8, TOKENS, count, dtype=dtype) if bias else None
    lse = tensor(1, 8, count, dtype=launch.acc_dtype(dtype))
    mediator_triton.gather(m, k, v, inner, dim**-0.5)
    mediator_triton.gather_backward(gathered, m, k, v, inner, gathered, lse, dim**-0.5)
    out, lse = mediator_triton.spread(q, m, gathered, outer, dim**-0.5)
    mediator_triton.spread_backward(out, q, m, gathered, outer, out, lse, dim**-0.5)


# Every branch that the plain calls do not take. The names are keys of saved tables.
BRANCHES = {
    "linear normaliser": lambda dtype: linear(64, dtype, normaliser=True),
    "linear mask": lambda dtype: linear(64, dtype, masked=True, feature_map="relu"),
    "linear plain": lambda dtype: linear(64, dtype, normalise=False, feature_map="relu2"),
    "linear values": lambda dtype: linear(72, dtype, value_dim=40, feature_map="identity"),
    "linear masked normaliser": lambda dtype: linear(128, dtype, normaliser=True, masked=True),
    "linear wide normaliser": lambda dtype: linear(160, dtype, normaliser=True),
    "linear wide values": lambda dtype: linear(128, dtype, value_dim=288),
    "linear narrow values": lambda dtype: linear(144, dtype, value_dim=128),
    "window picture": lambda dtype: window(64, dtype, text=0, extra=0),
    "window square": lambda dtype: window(64, dtype, extra=0, shape="square", lse=True),
    "tile narrow": lambda dtype: tile(64, dtype, side=4, text=0),
    "tile alone": lambda dtype: tile(64, dtype, means=False),
    "tile threshold": lambda dtype: tile(64, dtype, least=-3.0),
    "mediator bias": lambda dtype: mediator(64, dtype, count=49, bias=True),
    "mediator wide bias": lambda dtype: mediator(128, dtype, count=49, bias=True),
    "mediator widest bias": lambda dtype: mediator(160, dtype, count=49, bias=True),
}


def cases(dims: list[int], dtypes: list[torch.dtype]) -> Iterator[tuple[str, Callable[[], None]]]:
    for dtype in dtypes:
        short = str(dtype).removeprefix("torch.")
        for dim in dims:
            yield f"linear {dim} {short}", functools.partial(linear, dim, dtype)
            if dim <= MOST_SOFTMAX:
                yield f"window {dim} {short}", functools.partial(window, dim, dtype)
                yield f"tile {dim} {short}", functools.partial(tile, dim, dtype)
                yield f"mediator {dim} {short}", functools.partial(mediator, dim, dtype)
        if 64 in dims:
            for name, case in BRANCHES.items():
                yield f"{name} {short}", functools.partial(case, dtype)


# Compiling
# ---------------------------------------------------------------------------------------------


class TargetDriver:
    """A Triton driver that only names its target."""

    def __init__(self, capability: tuple[int, int]):
        self.target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
        self.utils = SimpleNamespace()

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton caches compiled kernels by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextlib.contextmanager
def aimed(capability: tuple[int, int], compilations: list) -> Generator[None]:
    """Make launches inside the block compile for that architecture, and collect them in a list."""
    run, saved = JITFunction.run, (launch.capability, launch.processors, launch.obstacle)

    def compile_only(self, *arguments, grid, warmup, **options):
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        compilations.append(compiled)
        return compiled

    launch.capability, launch.processors = lambda device: capability, lambda device: 132
    launch.obstacle = lambda device: None  # so that Triton is chosen
    JITFunction.run = compile_only
    driver.set_active(TargetDriver(capability))
    try:
        yield
    finally:
        JITFunction.run = run
        launch.capability, launch.processors, launch.obstacle = saved


def build(name: str, case: Callable[[], None], capability: tuple[int, int]) -> list[Build]:
    """Return every kernel of a case, each once."""
    compilations: list = []
    with aimed(capability, compilations):
        case()
    unique = {compiled.hash: compiled for compiled in compilations}
    return [read(compiled, name, capability) for compiled in unique.values()]


def read(compiled, case: str, capability: tuple[int, int]) -> Build:
    ptx = compiled.asm["ptx"]
    registers, spilled = resources(compiled.asm["cubin"])
    return Build(
        kernel=compiled.metadata.name,
        case=case,
        capability=capability,
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        wgmma=len(re.findall(r"wgmma\.mma_async", ptx)),
        mma=len(re.findall(r"\bmma\.sync", ptx)) + len(re.findall(r"tcgen05\.mma", ptx)),
        copies=len(re.findall(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx))
        + len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
        code=code_of(ptx, compiled.metadata.name),
    )


def code_of(ptx: str, name: str) -> str:
    """Return a digest of the instructions without the kernel's name and line numbers."""
    instructions, *_ = ptx.split(".section", 1)  # debug information follows
    instructions = instructions.replace(name, "kernel")
    lines = (line.split("//")[0].strip() for line in instructions.splitlines())
    kept = [line for line in lines if not re.match(r"$|\.loc|\.file|\$L__(tmp|func)", line)]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def resources(cubin: bytes) -> tuple[int, int]:
    """Return (registers a thread, bytes of stack), as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    return int(match[1]), int(match[2])


# Two tables
# ---------------------------------------------------------------------------------------------


def by_case(builds: list[dict]) -> dict[tuple, list[dict]]:
    """Return the kernels of each capability and case, in the order of their launches."""
    cases = collections.defaultdict(list)
    for build in builds:
        cases[*build["capability"], build["case"]].append(build)
    return dict(cases)


def differences(before: list[dict], after: list[dict]) -> list[str]:
    """Return a sentence for each kernel of `after` that differs from the one in `before`.

    Kernels are matched by their order within a case, so that one may be renamed.
    """
    known = by_case(before)
    sentences = []
    for (major, minor, case), new in by_case(after).items():
        old = known.get((major, minor, case), [])
        if len(old) != len(new):
            sentences.append(f"{case} on {major}.{minor}: {len(old)} kernels -> {len(new)}")
            continue
        for was, now in zip(old, new, strict=True):
            fields = now.keys() - {"kernel", "capability"}
            changed = sorted(name for name in fields if was.get(name) != now[name])
            changes = [f"{name} {was.get(name)} -> {now[name]}" for name in changed]
            if changes:
                sentences.append(
                    f"{case}, {now['kernel']} on {major}.{minor}: {', '.join(changes)}"
                )
    return sentences


def as_line(build: Build) -> str:
    return (
        f"{build.case:<32}{build.kernel:<24}{build.registers:>4} registers "
        f"{build.spilled:>5} spilled {build.shared / 1024:>6.1f} KB {build.wgmma:>3} wgmma "
        f"{build.mma:>4} mma {build.copies:>4} copies {'; '.join(build.faults)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", nargs="+", default=["9.0"])
    parser.add_argument("--dims", type=int, nargs="+", default=[40, 64, 72, 80, 128, 160, 288])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument(
        "--plain", action="store_true", help="leave out the branches that plain calls do not take"
    )
    parser.add_argument("--only", choices=("linear", "window", "tile", "mediator"))
    parser.add_argument("--json", type=Path, help="write the table there as well")
    parser.add_argument(
        "--compare", type=Path, help="say what differs from this table, and fail if anything does"
    )
    options = parser.parse_args()
    table = []
    dtypes = [getattr(torch, dtype) for dtype in options.dtypes]
    for capability, (name, case) in itertools.product(
        options.capability, cases(options.dims, dtypes)
    ):
        operation, branch, *_ = name.split()
        plain = branch.isdigit()  # the head dim
        if options.only not in (None, operation) or (options.plain and not plain):
            continue
        major, minor = map(int, capability.split("."))
        for kernel in build(name, case, (major, minor)):
            table.append(asdict(kernel) | {"faults": kernel.faults})
            print(as_line(kernel), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n")
    if options.compare:
        changes = differences(json.loads(options.compare.read_text()), table)
        print("\n".join(changes) or f"all {len(table)} kernels are the same as before")
        return 1 if changes else 0
    return 1 if any(kernel["faults"] for kernel in table) else 0


if __name__ == "__main__":
    sys.exit(main())
