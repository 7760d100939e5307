"""All faults, and the command that injects them: `make faults`."""

import sys
import tempfile
import time
from pathlib import Path

from faults import files, runs
from faults.fault import UNTRIED

ALL = [*files.faults(), *runs.faults()]
QUICK = [fault for fault in ALL if fault.quick]


def main(names: list[str]) -> int:
    chosen = [fault for fault in ALL if not names or any(name in fault.name for name in names)]
    began = time.monotonic()
    counts = dict.fromkeys(("held", "FAILED", UNTRIED), 0)
    for fault in chosen:
        with tempfile.TemporaryDirectory() as folder:
            seen = fault.seen(Path(folder))
        result = "held" if fault.holds(seen) else "FAILED"
        result = UNTRIED if seen.startswith(UNTRIED) else result
        counts[result] += 1
        line = f"{result} | {fault.name} | {fault.expected} | {seen}"
        print(line.replace(str(folder), "..."), flush=True)
    minutes = (time.monotonic() - began) / 60
    shown = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
    print(f"{len(chosen)} faults: {shown}, in {minutes:.1f} minutes")
    return 1 if counts["FAILED"] or not counts["held"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
