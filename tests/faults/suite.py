"""All faults, and the command that injects them: `make faults`."""

import sys
import tempfile
import time
from pathlib import Path

from faults import files, runs

ALL = [*files.faults(), *runs.faults()]
QUICK = [fault for fault in ALL if fault.quick]


def main(names: list[str]) -> int:
    chosen = [fault for fault in ALL if not names or any(name in fault.name for name in names)]
    began, broken = time.monotonic(), 0
    for fault in chosen:
        with tempfile.TemporaryDirectory() as folder:
            seen = fault.seen(Path(folder))
        held = fault.holds(seen)
        broken += not held
        line = f"{'held' if held else 'FAILED'} | {fault.name} | {fault.expected} | {seen}"
        print(line.replace(str(folder), "..."), flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(chosen)} faults, {len(chosen) - broken} held, in {minutes:.1f} minutes")
    return 1 if broken or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
