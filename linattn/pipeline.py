"""`make repro`: the pipeline from start to report, in plain sentences.

- `dvc repro -k` runs what changed and nothing else. A stage that fails stops what needs it and
  nothing besides: the report is rendered all the same, names the failed students, and the command
  exits 1.
- `--teacher class` runs the stages of one teacher and its students, then the report by itself: of
  what there is.
- What a run makes lies where Git ignores it. dvc.lock alone is Git's and changes, for it says what
  ran here; the last lines name it, and the command that takes it back.
- A role that is a hub id is left out with a sentence, and refused where it is all there is to run:
  DVC takes a source for a path, and the judge knows the small world alone.
- Another profile (`--profile tiny`) runs in a copy of the repository under .scratch/, so that what
  is in Git stays what params.yaml says. The copy shares the cache: going back is instant.
- `--check` says whether dvc.lock is in step with the code, without running anything; `--accept`
  brings it in step after an edit that cannot alter results.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from linattn import params, project, world
from linattn.names import known

# of params.yaml's profile
PUBLISHED = tuple(f"reports/{kind}" for kind in ("results", "runs", "students", "studies"))
LEFT = {
    ".git",
    ".venv",
    ".scratch",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    ".ipynb_checkpoints",
}


def repro(only: str | None = None) -> int:
    settings = params.load()
    asked = [known(only, settings.teachers, "teacher")] if only else list(settings.teachers)
    roles = [role for role in asked if settings.teachers[role].folder]
    foreign = [role for role in asked if role not in roles]
    if foreign and not roles:
        raise ValueError(by_hand(settings, foreign[0]))
    for role in roles:
        teacher = settings.teachers[role]
        if not (teacher.folder / "model_index.json").exists():
            raise ValueError(
                f"the {role} teacher, {teacher.source}, is not there: get a clone that holds it, "
                "or train it "
                "(hours on a CPU, minutes on a GPU) with python -m linattn.notebooks teacher "
                f"--teacher {role}; "
                f"or take {role} and its students out of params.yaml, or run another alone: make "
                "repro TEACHER=class"
            )
    announce(settings, roles)
    make_folders()
    for role in foreign:
        print(f"{role} is left out: {by_hand(settings, role)}.", flush=True)
    chosen = (
        [target for role in roles for target in targets(settings, role)] if only or foreign else []
    )
    with naming_what_changed("dvc.lock"):
        done = dvc("repro", "--keep-going", *chosen).returncode
        if chosen and done == 0:
            done = render()
    report = project.report()
    if done == 0:
        print(f"Done. The report: {report}")
        return 0
    print("\nA stage failed; rendering the report with what there is.", flush=True)
    rendered = render() == 0
    failed = failures(settings, roles)
    print(f"Failed: {', '.join(failed) or 'see the messages above'}.", file=sys.stderr)
    copies = sorted(path.name for path in (project.ROOT / "reports" / "failed").glob("*.ipynb"))
    if copies:
        print(
            f"Notebooks with their tracebacks, in reports/failed/: {', '.join(copies)}",
            file=sys.stderr,
        )
    print(
        f"The report, without them: {report}" if rendered else "The report could not be rendered.",
        file=sys.stderr,
    )
    return 1


def render() -> int:
    """Run the report's stage alone: what lies there now is rendered and recorded, and no other
    stage runs.
    """
    return dvc("repro", "--single-item", "report").returncode


def make_folders() -> None:
    """Make the folders that the report depends on. DVC takes an empty one for a report without that
    chapter.
    """
    deps = YAML(typ="safe").load(project.ROOT / "dvc.yaml")["stages"]["report"]["deps"]
    for folder in (project.ROOT / dep for dep in deps if not Path(dep).suffix):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def naming_what_changed(lock: str) -> Iterator[None]:
    """Afterwards, be it after Ctrl-C, name the one file of Git's that a run changes and what takes
    it back.
    """
    path = project.ROOT / lock
    before = path.read_bytes() if path.exists() else b""
    try:
        yield
    finally:
        if path.exists() and path.read_bytes() != before and project.differs(lock):
            print(
                f"{lock} now records what ran on this machine; the run changed nothing else that "
                "Git holds. "
                f"git checkout HEAD -- {lock} takes it back and loses no result: DVC's cache keeps them.",
                flush=True,
            )


def study(name: str) -> int:
    """Run a study of studies/<name>; its result lies in reports/local, beside the published one."""
    names = sorted(path.parent.name for path in (project.ROOT / "studies").glob("*/dvc.yaml"))
    folder = f"studies/{known(name, names, 'study')}"
    with naming_what_changed(f"{folder}/dvc.lock"):
        return dvc("repro", f"{folder}/dvc.yaml").returncode


def by_hand(settings: params.Params, role: str) -> str:
    """Why a teacher of the hub is none of the pipeline's, and how its students are made."""
    name, profile = next(iter(settings.of_teacher(role)), "NAME"), settings.profile
    return (
        f"the judge knows the {len(world.LABELS)} classes of the small world, which "
        f"{settings.teachers[role].source} "
        f"does not draw: its students cannot be evaluated yet. They can be made by hand, in "
        f"{project.by_hand().relative_to(project.ROOT)}: python -m linattn.notebooks sample "
        f"--by-hand --teacher {role} "
        f"--profile {profile}, then python -m linattn.distill --student {name} --profile {profile}"
    )


def announce(settings: params.Params, roles: list[str]) -> None:
    """What will run, and how long that takes where nothing is there yet."""
    print(f"Profile {settings.profile}:", flush=True)
    nano = settings.profile == "nano"
    for role in roles:
        teacher, names = settings.teacher(role), settings.of_teacher(role)
        minutes = (
            f", some {teacher.minutes} minutes on two cores" if nano and teacher.minutes else ""
        )
        print(
            f"  {role}: {teacher.source}, {len(names)} students ({', '.join(names)}){minutes}",
            flush=True,
        )
    print("Stages that are up to date are skipped; the others say what they do.", flush=True)


def targets(settings: params.Params, role: str) -> list[str]:
    """The stages of one teacher. Anatomy and benchmark are of `class`; the report shows what there
    is.
    """
    named = [
        f"sample@{role}",
        f"reference@{role}",
        *(("anatomy", "benchmark") if role == "class" else ()),
    ]
    named += [
        f"{stage}@{name}" for stage in ("distill", "evaluate") for name in settings.of_teacher(role)
    ]
    return named


def failures(settings: params.Params, roles: Sequence[str]) -> list[str]:
    """Teachers' rows and students without a result, or whose last run ended in an error."""
    rows = [
        name for role in roles for name in (project.teacher_row(role), *settings.of_teacher(role))
    ]
    return [name for name in rows if not project.result(name).exists() or _error(name)]


def _error(name: str) -> str | None:
    path = project.run_result(name)
    return project.read_json(path).get("error") if path.exists() else None


def dvc(*words: str, root: Path | None = None, **options: Any) -> subprocess.CompletedProcess:
    # The stages' own `python` is this one, whether or not the environment is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    root = root or project.ROOT
    environment = {
        **os.environ,
        "PATH": path,
        "DVC_NO_ANALYTICS": "1",
        "PYTHONPATH": project.python_path(root),
    }
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=root, env=environment, **options
    )


def stale(root: Path | None = None) -> list[str]:
    """Stages whose code or parameters are not those that dvc.lock records; what they make need not
    be there.
    """
    said = dvc(
        "repro",
        "--dry",
        "--allow-missing",
        "--keep-going",
        root=root,
        capture_output=True,
        text=True,
    )
    changed = would_run(said.stdout + said.stderr)
    if re.search("Unable to acquire lock|is busy", said.stdout + said.stderr):
        raise RuntimeError("another run is going on here: wait for it, or stop it")
    if said.returncode and not changed:
        raise RuntimeError(f"dvc repro --dry failed: {said.stderr.strip()}")
    return changed


def would_run(said: str) -> list[str]:
    """Stages of a dry run; one without its deps on disk is named as failed, for it cannot be looked
    up.
    """
    lines = re.findall(r"(?:Running stage|failed to reproduce).*", said)
    return list(
        dict.fromkeys(name for line in lines for name in re.findall(r"'([a-z@][^' ]*)'", line))
    )


def check() -> int:
    if not (project.ROOT / "dvc.lock").exists():
        print("There is no dvc.lock: make repro writes it.", file=sys.stderr)
        return 1
    changed = stale()
    if not changed:
        print("dvc.lock is in step with the code.")
        return 0
    print(
        f"dvc.lock is behind what lies here in {len(changed)} stages: {', '.join(changed)}.",
        file=sys.stderr,
    )
    print(
        "Run make repro, or python -m linattn.pipeline --accept for an edit that cannot alter results; then commit it.",
        file=sys.stderr,
    )
    return 1


def accept() -> int:
    """Record the code as it is now, after an edit that cannot alter results; what stages made stays
    as it was recorded.

    dvc commit wants everything there that a stage made. This needs nothing but the clone. A stage
    that never ran has nothing to keep and stays new; one whose parameters, data or command are
    others stays stale, since those do alter results.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    try:
        with Repo(str(project.ROOT)) as repo, lock_repo(repo):
            stages = [
                stage
                for stage in repo.index.stages
                if not stage.frozen and all(o.hash_info for o in stage.outs)
            ]
            renewed = [stage.addressing for stage in stages if _renew(stage)]
    except DvcException as error:
        raise RuntimeError(f"dvc.lock stays as it is: {error}") from None
    print(
        "Recorded as it is now: the code of "
        f"{', '.join(renewed) or 'no stage, since none has changed'}."
    )
    if behind := stale():
        print(
            f"Not recorded, since more than code differs: {', '.join(behind)}. make repro runs "
            "them."
        )
    return 0


CODE = ("linattn/", "kernels/", "notebooks/", "studies/", "reports/template")


def _renew(stage: Any) -> bool:
    """Record a stage's code, and say whether that was another in dvc.lock."""
    code = [dep for dep in stage.deps if str(dep).startswith(CODE) and not hasattr(dep, "params")]
    before = [dep.hash_info for dep in code]
    for dep in code:
        dep.save()
    changed = before != [dep.hash_info for dep in code]
    if changed:
        stage.dump(update_pipeline=False)
    return changed


# Another profile, in a copy


def copy(folder: Path, profile: str) -> Path:
    """The working tree at `folder` with params.yaml turned to `profile`; results that lie there
    stay.
    """
    for path in PUBLISHED:
        shutil.rmtree(folder / path, ignore_errors=True)
    for path in files():
        if not path.startswith(("dvc.lock", *PUBLISHED)):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project.ROOT / path, target)
    for gone in set(files(folder)) - set(files()):
        if gone.startswith(("linattn/", "notebooks/", "kernels/", "tests/")):
            (folder / gone).unlink()
    choose(folder, profile)
    local = folder / ".dvc" / "config.local"
    local.write_text(
        f"[core]\n    no_scm = true\n[cache]\n    dir = {project.ROOT / '.dvc' / 'cache'}\n"
    )
    return folder


def choose(folder: Path, profile: str) -> None:
    path = folder / "params.yaml"
    text, found = re.subn(r"^profile: .*$", f"profile: {profile}", path.read_text(), flags=re.M)
    if found != 1:
        raise ValueError(f"{path} has {found} lines that begin with 'profile:'; it needs one")
    path.write_text(text)


def files(root: Path | None = None) -> list[str]:
    """What Git has or would take; without Git, all but what is made again."""
    root = root or project.ROOT
    if project.in_git(root):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if listed.returncode == 0:
            return sorted(
                path for path in set(listed.stdout.split("\0")) if path and (root / path).is_file()
            )
    made = tuple(f"data/{name}/" for name in ("samples", "reference", "pictures"))
    made += tuple(
        f"reports/{name}" for name in ("local/", "notebooks/", "pages/", "failed/", "index.html")
    )
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in LEFT and Path(place, name) != root / ".dvc" / "cache"
        ]
        found += [Path(place, name).relative_to(root).as_posix() for name in names]
    return sorted(path for path in found if not path.startswith((*made, ".dvc/tmp/")))


def elsewhere(profile: str, teacher: str | None = None) -> int:
    folder = copy(project.ROOT / ".scratch" / "profiles" / profile, profile)
    print(
        f"Profile {profile} runs in a copy, {folder.relative_to(project.ROOT)}: nothing here changes.",
        flush=True,
    )
    environment = {
        **os.environ,
        "PYTHONPATH": project.python_path(folder),
        "LINATTN_COMMIT": project.commit() or "",
    }
    words = ["--teacher", teacher] if teacher else []
    return subprocess.run(
        [sys.executable, "-m", "linattn.pipeline", *words], cwd=folder, env=environment
    ).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m linattn.pipeline", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--profile", help="run another profile than params.yaml's, in a copy")
    parser.add_argument("--teacher", help="only the stages of this role, e.g. class")
    parser.add_argument("--study", help="a pipeline of studies/ instead, e.g. plugins")
    parser.add_argument(
        "--accept", action="store_true", help="record an edit that cannot alter results in dvc.lock"
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether dvc.lock is in step with the code"
    )
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return check()
        if options.accept:
            return accept()
        if options.study is not None:
            return study(options.study)
        if options.profile and options.profile != params.load().profile:
            params.load(options.profile)  # a misspelt name is refused before anything is copied
            return elsewhere(options.profile, options.teacher)
        with project.pipeline():  # never what was made by hand
            return repro(options.teacher)
    except (ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "linattn: interrupted; what is finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
