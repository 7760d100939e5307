"""Put the digests of all files beside the pins of requirements.lock: `python .ci/lock.py`.

pip then takes a file only if it is one of these, wherever it was fetched from. torch has a lock of
its own, since its CPU build is another file of the same version.
"""

import json
import os
import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX = os.environ.get("INDEX", "https://pypi.org/simple")
FORM = {"Accept": "application/vnd.pypi.simple.v1+json"}
# Python 3.11 to 3.14 on Linux and macOS, and sources
FILES = re.compile(
    r".*(\.tar\.gz|\.zip|-py[23.py]*-none-any\.whl"
    r"|-(py3|cp3\d+)-(none|abi3|cp31[1-4])-(any|macosx|manylinux|musllinux|linux).*\.whl)$"
)


def pins(text: str) -> list[str]:
    """Return the pins of a lock, with or without digests."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [re.sub(r"\s+--hash=\S+", "", line).strip() for line in lines]


def digests(pin: str) -> list[str]:
    """Return the sha256 of each file of a pin, as the index names them."""
    name, version = re.split("==| ;", pin)[:2]
    request = urllib.request.Request(f"{INDEX}/{name.lower().replace('_', '-')}/", headers=FORM)
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    found = [
        file["hashes"]["sha256"]
        for file in files
        if FILES.match(file["filename"]) and _is_of(file["filename"], name, version)
    ]
    if not found:
        sys.exit(f"{pin}: the index names no file of it")
    return sorted(set(found))


def _is_of(file: str, name: str, version: str) -> bool:
    plain = re.sub(r"[-_.]+", "-", file.lower())
    start = re.sub(r"[-_.]+", "-", f"{name}-{version}".lower())
    return bool(re.match(rf"{re.escape(start)}(-(py|cp|tar-gz|zip|\d)|$)", plain))


def main() -> None:
    path = ROOT / "requirements.lock"
    text = path.read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    lines = []
    for pin in pins(text):
        hashes = [f"    --hash=sha256:{digest}" for digest in digests(pin)]
        lines.append(" \\\n".join([pin, *hashes]))
        print(f"{pin}: {len(hashes)} files", flush=True)
    path.write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
