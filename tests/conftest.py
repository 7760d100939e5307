"""What every test runs under: poisoned memory and few threads.

- Fresh memory is NaN: an output that nobody wrote shows instead of passing by luck.
- Triton is interpreted where there is no GPU.
- One thread: tests are tiny and share their machine, where the barrier of a second thread waits for
  the scheduler (measured under load: 8 ms an operation that takes .1 ms). `threads` gives a test
  more.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: whether a kernel is interpreted is decided where it is
    # defined. Who wants it on the CPU asks for it (use_backend); the default there is PyTorch.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background job ignores Ctrl-C and nohup's the end of its terminal, and so would all that
# the tests start and interrupt.
for name, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(name) == signal.SIG_IGN:
        signal.signal(name, usual)

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what tests start shares the machine as well

LONG = {  # minutes each
    "test_foreign.py",
    "test_pipeline.py",
    "test_kernel_builds.py",
    "test_kernels.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Of the cores that this process may use, not those that there are; each takes some .8 GB."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, 8)


def pytest_collection_modifyitems(items):
    """What takes longest begins first: a file is one process's work, and the others wait for the
    last.
    """
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """fill_uninitialized_memory acts in deterministic mode only; warn_only, since not all GPU
    operations have one.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """The files that Git's index holds, in a folder of their own: nothing that a run left in the
    working tree.
    """
    from linattn import project

    root, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("committed")
    if not project.in_git(root):
        pytest.skip("no Git here: nothing says what is committed")
    subprocess.run(["git", "checkout-index", "--all", f"--prefix={folder}/"], cwd=root, check=True)
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


@pytest.fixture
def threads():
    """threads(2) for the rest of one test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)
