"""What happens around a stage: kills, signals, full and read-only disks, locks, damaged outs."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.clone import STUDENT, Clone, finished, kill
from faults.damage import DAMAGE, flipped
from faults.fault import KEPT, MADE_AGAIN, NAMED, SAME, UNTRIED, Fault

LIT = "\n  lit: {operator: lit, teacher: class}"
OTHER = ("layerwise_steps: 2, steps: 4", "layerwise_steps: 2, steps: 6")  # of profile tiny
MOMENTS = {"as it starts": "> python -m", "while it trains": r"end-to-end 2/"}
SIGNALS = {
    "Ctrl-C": (signal.SIGINT, True),
    "SIGTERM of the first process": (signal.SIGTERM, False),
    "SIGHUP of all": (signal.SIGHUP, True),
}
REPRO = ("linattn.pipeline", "--teacher", "class")
DISTILL = ("dvc", "repro", "-s", "distill@lit")


def _interrupted(name: str, moment: str, folder: Path) -> str:
    """Edit the student, interrupt its training, and look at what is left and what is said."""
    clone = finished(folder)
    before = clone.student()
    clone.edit(*OTHER)
    process = clone.start(*REPRO)
    clone.wait_for(r"(?s)distill@lit.*" + MOMENTS[moment])
    kill(process, *SIGNALS[name])
    process.wait(timeout=120)
    left = [" ".join(one.cmdline()[:4]) for one in clone.processes()]
    if left:
        return f"{len(left)} processes run on: {left[0]}"
    if "Traceback" in clone.printed:
        return f"a traceback: {clone.printed[-200:]!r}"
    if "goes on" not in clone.printed:
        return f"no sentence on how to go on: {clone.printed[-200:]!r}"
    if clone.student() != before:
        return f"the former student is not there: {sorted(clone.student())}"
    clone.edit(*reversed(OTHER))
    code, printed = clone.run(*DISTILL)
    ran = "Running stage 'distill@lit'" in printed
    return (
        f"{KEPT}, and the edit taken back runs nothing" if not code and not ran else printed[-200:]
    )


def _killed(moment: str, folder: Path) -> str:
    """Kill everything at once, as the kernel does; the same command ends with the same bytes."""
    clone = finished(folder)
    before = clone.student()
    shutil.rmtree(clone.folder / STUDENT)
    command = ("dvc", "repro", "-f", "-s", "distill@lit")
    process = clone.start(*command)
    clone.wait_for(MOMENTS[moment])
    kill(process, signal.SIGKILL, True)
    process.wait(timeout=60)
    until = time.monotonic() + 30
    while clone.processes() and time.monotonic() < until:  # a kernel ends without its parent
        time.sleep(0.2)
    if clone.processes():
        return "a kernel runs on"
    code, printed = clone.run(*command)
    if code:
        return printed[-300:]
    drafts = [path.name for path in (clone.folder / STUDENT).rglob("*") if "draft" in path.name]
    return SAME if clone.student() == before and not drafts else f"other bytes, or {drafts}"


def _failing(folder: Path) -> str:
    """Let a stage fail after an edit: the former student is there."""
    clone = finished(folder)
    before = clone.student()
    clone.edit(LIT, LIT.replace("}", ", kernel: 4}"))
    code, printed = clone.run(*DISTILL)
    if not code:
        return "it did not fail"
    if clone.student() != before:
        return "the former student is gone"
    return KEPT if "kernel" in printed else f"the reason is not said: {printed[-200:]!r}"


def _damaged_out(name: str, stage: str, folder: Path) -> str:
    """Flip a bit of what another stage wrote, times and size as before, and run what reads it."""
    clone = finished(folder)
    path = next((clone.folder / name).rglob("*.safetensors"))
    times = path.stat()
    path.chmod(0o644)
    flipped(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    code, printed = clone.run("dvc", "repro", "-f", "-s", stage)
    said = re.search(rf"linattn: .*{re.escape(name)} is not what stage .* wrote", printed)
    return NAMED if code and said else f"exit {code}: {printed[-200:]!r}"


def _damaged_cache(damage: str, folder: Path) -> str:
    """Damage an object of DVC's cache, let DVC put it in place, and run what reads it."""
    clone = finished(folder)
    cache = clone.folder / ".dvc" / "cache" / "files" / "md5"
    shard = next((clone.folder / "data/samples/class").glob("*.safetensors"))
    name = hashlib.md5(shard.read_bytes()).hexdigest()  # as DVC names its objects
    held = cache / name[:2] / name[2:]
    held.chmod(0o644)
    DAMAGE[damage](held)
    held.chmod(0o444)
    shutil.rmtree(clone.folder / "data/samples/class")
    shutil.rmtree(clone.folder / STUDENT)
    clone.run("dvc", "checkout")
    code, printed = clone.run("dvc", "repro", "-f", "-s", "distill@lit")
    said = "is not what stage" in printed or "damaged" in printed
    return NAMED if code and said else f"exit {code}: {printed[-200:]!r}"


def _second_run(folder: Path) -> str:
    """Start a second run beside one that trains."""
    clone = finished(folder)
    clone.edit(*OTHER)
    first = clone.start(*REPRO)
    clone.wait_for(r"(?s)distill@lit.*end-to-end")
    other = subprocess.run(
        [sys.executable, "-m", *REPRO],
        cwd=clone.folder,
        env=clone.environment(),
        capture_output=True,
        text=True,
    )
    kill(first, signal.SIGTERM, False)
    first.wait(timeout=120)
    said = re.search(r"make repro \(process \d+\) is at work in this clone", other.stderr)
    quiet = "rendering" not in other.stdout + other.stderr
    return NAMED if other.returncode == 1 and said and quiet else other.stderr[-300:]


def _torn_lock(folder: Path) -> str:
    clone = finished(folder)
    (clone.folder / ".dvc" / "tmp" / "rwlock").write_text('{"write": {"/x"')
    code, printed = clone.run("linattn.pipeline", "--teacher", "nobody")
    if code != 1 or "unknown teacher" not in printed:
        return printed[-200:]
    script = "from linattn.alone import alone\nwith alone('make repro'): pass\n"
    (clone.folder / "once.py").write_text(script)
    clone.run("once")
    code, printed = clone.run(*DISTILL)
    return MADE_AGAIN if not code else printed[-200:]


def _no_room(folder: Path) -> str:
    """Let every file of more than some bytes fail, as a full disk does."""
    clone = finished(folder)
    before = clone.student()
    clone.edit(*OTHER)
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "sys.argv = ['linattn.notebooks', 'distill', '--student', 'lit']\n"
        "runpy.run_module('linattn.notebooks', run_name='__main__')\n"
    )
    (clone.folder / "limited.py").write_text(limited)
    more = {"LINATTN_PIPELINE": "1", "DVC_STAGE": "distill@lit"}
    environment = {**clone.environment(), **more}
    done = subprocess.run(
        [sys.executable, "limited.py"],
        cwd=clone.folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    if clone.student() != before:
        return "the former student is gone"
    if not done.returncode:
        return "it was not full"
    said = re.search(
        r"linattn: distill lit failed: .*(File too large|could not be written)", printed
    )
    return KEPT if said and "Traceback" not in done.stderr else printed[-300:]


def _read_only_reports(folder: Path) -> str:
    """A failing stage where its traceback cannot be kept."""
    clone = finished(folder)
    _last_cell(clone, "raise ValueError('on purpose')")
    (clone.folder / "reports" / "failed").write_text("a file in the folder's place")
    code, printed = clone.run("dvc", "repro", "-f", "-s", "distill@lit")
    said = re.search(r"linattn: .*on purpose; \.scratch.* has the traceback", printed)
    return NAMED if code and said else printed[-300:]


def _last_cell(clone: Clone, source: str) -> None:
    """Let the last cell of the notebook that distils be another."""
    path = clone.folder / "notebooks" / "04_distill.ipynb"
    content = json.loads(path.read_text())
    [cell for cell in content["cells"] if cell["cell_type"] == "code"][-1]["source"] = source
    path.write_text(json.dumps(content))


def _without_git(folder: Path) -> str:
    """An archive that was downloaded: no .git, and nothing that tells DVC so."""
    clone = finished(folder)
    (clone.folder / ".dvc" / "config.local").unlink()
    shutil.rmtree(clone.folder / STUDENT)
    script = (
        "from linattn import pipeline, project\n"
        "with project.pipeline(), pipeline.running('make repro'):\n"
        "    raise SystemExit(pipeline.dvc('repro', '-s', 'distill@lit'))\n"
    )
    (clone.folder / "once.py").write_text(script)
    code, printed = clone.run("once")
    return MADE_AGAIN if not code and clone.student() else printed[-300:]


def _odd_path(folder: Path) -> str:
    """Another profile's copy in a path with a comma, a number sign, a space and other letters."""
    clone = finished(folder)
    odd = folder / "a, b #1 ä"
    clone.folder.rename(odd)
    clone = Clone(odd)
    copied = (
        "import subprocess, sys\n"
        "from linattn import pipeline, project\n"
        "folder = pipeline.copy(project.ROOT / '.scratch' / 'profiles' / 'nano', 'nano')\n"
        "command = [sys.executable, '-m', 'dvc', 'stage', 'list']\n"
        "raise SystemExit(subprocess.call(command, cwd=folder))\n"
    )
    (odd / "once.py").write_text(copied)
    code, printed = clone.run("once")
    if code or "distill@lit" not in printed:
        return printed[-300:]
    code, printed = clone.run(*DISTILL)
    return MADE_AGAIN if not code else printed[-300:]


def _no_loopback(folder: Path) -> str:
    """A network without an interface, where unshare may make one."""
    clone = finished(folder)
    began = time.monotonic()
    command = ["unshare", "-rn", sys.executable, "-m", "linattn.notebooks", "distill"]
    done = subprocess.run(
        [*command, "--student", "lit", "--by-hand"],
        cwd=clone.folder,
        env=clone.environment(),
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr:
        return f"{UNTRIED}: {done.stderr.strip()[-80:]}"
    quick = time.monotonic() - began < 40
    said = "notebooks need the loopback interface" in done.stderr
    return NAMED if said and quick and "Traceback" not in done.stderr else done.stderr[-300:]


def _flood(folder: Path) -> str:
    """A cell that prints 200 MB."""
    clone = finished(folder)
    _last_cell(clone, "for _ in range(20_000):\n    print('x' * 10_000)")
    code, printed = clone.run("dvc", "repro", "-f", "-s", "distill@lit")
    return SAME if not code else printed[-300:]


def _misspelt(folder: Path) -> str:
    """A name that is none: no kernel starts, and nothing is left behind."""
    clone = finished(folder)
    before = {path for path in clone.folder.rglob("*") if ".scratch" not in path.parts}
    for name in ("lti", "../../lit", "x" * 300):
        code, printed = clone.run("linattn.notebooks", "distill", "--student", name)
        if code != 1 or "unknown student" not in printed or "Traceback" in printed:
            return f"{name[:20]}: {printed[-200:]!r}"
    after = {path for path in clone.folder.rglob("*") if ".scratch" not in path.parts}
    new = [str(path) for path in after - before if "__pycache__" not in path.parts]
    return NAMED if new == [str(clone.folder / "output.txt")] or not new else f"left: {new[:3]}"


def faults() -> Iterator[Fault]:
    """Yield what happens around a stage."""

    def slow(name: str, expected: str, inject: Callable[[Path], str]) -> Fault:
        return Fault(name, expected, inject, quick=False)

    for name in SIGNALS:
        for moment in MOMENTS:

            def interrupted(folder: Path, name: str = name, moment: str = moment) -> str:
                return _interrupted(name, moment, folder)

            yield slow(f"make repro, {name} {moment}", KEPT, interrupted)
    for moment in MOMENTS:

        def killed(folder: Path, moment: str = moment) -> str:
            return _killed(moment, folder)

        yield slow(f"a stage, SIGKILL of all {moment}", SAME, killed)
    yield slow("a stage that fails after an edit", KEPT, _failing)
    for name, stage in (("data/samples/class", "distill@lit"),):

        def out(folder: Path, name: str = name, stage: str = stage) -> str:
            return _damaged_out(name, stage, folder)

        yield slow(f"{name}: a flipped bit that DVC does not see", NAMED, out)
    for damage in ("a flipped bit", "half of it"):

        def cached(folder: Path, damage: str = damage) -> str:
            return _damaged_cache(damage, folder)

        yield slow(f"DVC's cache: {damage}", NAMED, cached)
    yield slow("a second make repro beside one", NAMED, _second_run)
    yield slow("DVC's lock, torn", MADE_AGAIN, _torn_lock)
    yield slow("a full disk while a student is trained", KEPT, _no_room)
    yield slow("reports/failed cannot be written", NAMED, _read_only_reports)
    yield slow("no Git", MADE_AGAIN, _without_git)
    yield slow("a path of odd letters", MADE_AGAIN, _odd_path)
    yield slow("no loopback", NAMED, _no_loopback)
    yield slow("a cell that prints 200 MB", SAME, _flood)
    yield slow("a misspelt name", NAMED, _misspelt)
