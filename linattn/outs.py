"""Keep what stages have made: DVC removes a stage's outs before it runs the stage.

- A stage that fails or is interrupted gets its former outs back from DVC's cache. dvc.lock records
  them until the stage has run to its end, so an edit that is taken back finds everything in step.
- DVC trusts the objects of its cache by their file mode: a flipped bit or a cut file would be put
  in place without a word. What another stage has made is therefore compared with dvc.lock before a
  stage reads it.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from linattn import project, reader
from linattn.files import DRAFT, Damaged

REPORT = "report"  # the stage that names what is damaged as a failed row, and goes on
RUNNING = "DVC_STAGE"  # DVC's name of the stage that it runs, in the stage's environment


def restore(stage: str | None = None) -> list[str]:
    """Bring back outs that dvc.lock records and that lie nowhere but in DVC's cache.

    Returns their paths. An out of which anything is there stays as it is.

    Args:
        stage: as DVC names it, such as distill@clear; None: all stages.
    """
    from dvc.exceptions import DvcException

    restored = []
    try:
        with _repository() as repo:
            stages = [_stage(repo, stage)] if stage else repo.index.stages
            for out in (out for one in stages if not one.frozen for out in one.outs):
                if out.use_cache and out.hash_info and not out.exists:
                    restored += [_name(out)] if _checked_out(out) else []
    except DvcException:
        return restored  # DVC itself names a broken dvc.yaml or dvc.lock
    except OSError as error:
        remedy = "it lies in DVC's cache, and python -m dvc checkout brings it back"
        print(f"What was there could not be put back ({error}): {remedy}", file=sys.stderr)
    return restored


@contextlib.contextmanager
def _repository() -> Generator[Any]:
    """Open DVC's repository; it keeps notes in a database, which a full disk refuses."""
    from dvc.repo import Repo

    try:
        with Repo(str(project.ROOT)) as repo:
            yield repo
    except sqlite3.Error as error:
        raise OSError(f"DVC cannot write its notes: {error}; is the disk full?") from None


def _checked_out(out: Any) -> bool:
    """Put an out in place, and say whether its cache object was there and whole."""
    from dvc.exceptions import CheckoutError, DvcException

    try:
        out.checkout(force=True)
    except (CheckoutError, DvcException, OSError):
        return False
    return out.exists


def running() -> str | None:
    """Return the stage that DVC runs in this process or its parents, or None outside of a stage."""
    return os.environ.get(RUNNING)


@contextlib.contextmanager
def kept() -> Generator[None]:
    """Compare what the running stage reads, and bring its outs back where it does not end well."""
    stage = running()
    try:
        if stage and stage != REPORT:
            check(stage)
        yield
    except BaseException:
        if stage and (restored := restore(stage)):
            print(f"Put back as before: {', '.join(restored)}", file=sys.stderr, flush=True)
        raise


def check(stage: str) -> None:
    """Raise Damaged for the first of a stage's files that is not what its own stage wrote."""
    if sentences := list(damaged(stage).values()):
        raise Damaged(sentences[0])


def damaged(stage: str) -> dict[str, str]:
    """Return a sentence for every file that a stage reads and that dvc.lock records otherwise.

    Args:
        stage: as DVC names it; what is in step with the stage that wrote it has no sentence.
    """
    read, sentences = _read_by(stage), {}
    for writer, name, recorded in _recorded(stage):
        if any(name == path or name.startswith(f"{path}/") for path in read):
            sentence = _damage(writer, name, recorded)
            sentences |= {name: sentence} if sentence else {}
    return sentences


def _recorded(stage: str) -> Iterator[tuple[str, str, str]]:
    """Yield stage, path and digest of all outs that the locks record, a study's own too."""
    folder = Path(stage.rpartition(":")[0] or "dvc.yaml").parent
    for lock in dict.fromkeys((project.ROOT / "dvc.lock", project.ROOT / folder / "dvc.lock")):
        stages = reader.read_yaml(lock)["stages"] if lock.is_file() else {}
        for writer, entry in stages.items():
            for out in entry.get("outs", []):
                if "md5" in out:
                    yield writer, out["path"], out["md5"]


def _read_by(stage: str) -> list[str]:
    """Return the deps of a stage that are data; code may be edited."""
    with _repository() as repo:
        names = [_name(dep) for dep in _stage(repo, stage).deps if dep.protocol == "local"]
    return [name for name in names if name.startswith(("data/", "reports/"))]


def _stage(repo: Any, stage: str) -> Any:
    """Return a stage by DVC's name of it, whatever the working directory."""
    file, _, name = stage.rpartition(":")
    return repo.stage.load_one(path=str(project.ROOT / (file or "dvc.yaml")), name=name)


def _name(out: Any) -> str:
    """Return the path of an out or dep from the root."""
    return Path(out.fs_path).relative_to(project.ROOT.resolve()).as_posix()


def _damage(writer: str, name: str, recorded: str) -> str | None:
    """Say what is wrong with an out and what helps; None where it is as recorded or not there."""
    path = project.ROOT / name
    if not path.exists() or (now := md5(path)) == recorded:
        return None
    return (
        f"{name} is not what stage {writer} wrote: its md5 is {now}, and dvc.lock records "
        f"{recorded}. It was damaged or edited, and nothing is computed from it; make repro makes "
        f"it again after rm -r {name} {_object(recorded).relative_to(project.ROOT)}"
    )


def _object(md5: str) -> Path:
    """Return the path of an object in DVC's cache."""
    return project.ROOT / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def md5(path: Path) -> str:
    """Return the digest of a file or folder as DVC records it, from its bytes alone."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file() and not _ignored(file))
    listed = [{"md5": md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listed.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def _ignored(path: Path) -> bool:
    """Say whether .dvcignore leaves a file out: drafts of a writer that was killed."""
    return DRAFT in path.as_posix()
