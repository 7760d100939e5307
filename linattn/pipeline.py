"""`make repro`: the pipeline from start to report, in plain sentences.

- `dvc repro -k` runs what changed and nothing else. A stage that fails stops the stages that need
  it and no others. The report is rendered all the same, names the failed students, and the command
  exits 1.
- `--teacher ROLE` runs the stages of one teacher and its students, then renders the report of the
  results that are there.
- A run writes where Git ignores it. Of Git's files only dvc.lock changes, since it records what ran
  here; the last lines name it, and the command that takes the change back.
- A teacher is any pipeline folder or hub id; what cannot be one is refused before anything is drawn
  (source.py).
- Another profile (`--profile tiny`) runs in a copy of the repository under .scratch/, so that what
  is in Git stays what params.yaml says. The copy shares the cache: going back is instant. In its
  params.yaml the profile's own teachers and students stand in the place of the common ones, since
  DVC makes stages of these lists.
- `--check` says whether dvc.lock is in step with the code, without running anything; `--accept`
  brings it in step after an edit that cannot alter results.
"""

import argparse
import contextlib
import filecmp
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from linattn import hours, outs, params, project, reader, signals, source
from linattn.alone import alone
from linattn.files import DRAFT, Damaged, whole, write_text
from linattn.names import known
from linattn.report import schema
from linattn.report.stored import Files

# folders with results of the profile that params.yaml names
PUBLISHED = tuple(
    f"reports/{name}" for name in ("results", "runs", "students", "studies", "pictures", "executed")
)
SKIPPED = {
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
    """Run all stages, or those of one teacher, render the report, and return the exit code."""
    settings = params.load()
    _check_listed(settings)
    roles = _roles(settings, only)
    _check_sources(settings, roles)
    with running("make repro"):
        return _repro(settings, roles, everything=not only)


def _repro(settings: params.Params, roles: Sequence[str], everything: bool) -> int:
    """Run the stages of these roles, or all there are, and render the report."""
    announce(settings, roles)
    make_folders()
    stages: list[str] = []
    for role in () if everything else roles:
        stages += targets(settings, role)
    with naming_what_changed("dvc.lock"):
        code = dvc("repro", "--keep-going", *stages)
        if stages and code == 0:
            code = render()
    if code == 0:
        print(f"Done. The report: {project.report()}")
        return 0
    print("\nA stage failed; rendering the report with what there is.", flush=True)
    _name_failures(settings, roles, stages, rendered=render() == 0)
    return 1


def _check_sources(settings: params.Params, roles: Sequence[str]) -> None:
    """Refuse what cannot be a teacher; a damaged file of one of several leaves out that one."""
    damaged = {}
    for role in roles:
        try:
            source.check_steps(role, settings, source.check(role, settings.teacher(role)))
        except Damaged as error:
            damaged[role] = error
    if len(damaged) == len(roles):
        raise damaged[roles[0]]
    for role, error in damaged.items():
        print(f"The {role} teacher is left out: {error}", file=sys.stderr)


def _check_teacher(settings: params.Params, only: str | None) -> None:
    if only is not None:
        known(only, settings.teachers, "teacher")


def _roles(settings: params.Params, only: str | None) -> list[str]:
    """Return the roles to run: the one that was typed, or all that have students."""
    _check_teacher(settings, only)
    if only:
        return [only]
    return [role for role in settings.teachers if settings.of_teacher(role)]


def _check_listed(settings: params.Params) -> None:
    """Refuse a profile whose teachers or students are not those that DVC has stages of."""
    content = reader.read_yaml(project.ROOT / "params.yaml")
    listed = {*content["teachers"], *content["students"]}
    needed = {*_roles(settings, None), *settings.students}
    if missing := sorted(needed - listed):
        raise ValueError(
            f"profile {settings.profile} has teachers and students of its own ({missing[0]}), and "
            f"DVC has no stages of them here: leave the line profile: as it was, and run make "
            f"repro PROFILE={settings.profile}"
        )


def _name_failures(
    settings: params.Params, roles: Sequence[str], stages: Sequence[str], rendered: bool
) -> None:
    """Print which rows and stages failed, where their tracebacks are, and where the report is."""
    failed, waiting = failures(settings, roles), []
    with contextlib.suppress(RuntimeError):  # DVC is busy or broken, and has said so itself
        ended, waiting = unfinished(stages)
        failed += [stage for stage in ended if not {*_rows(stage)} & {*failed}]
    lines = [f"Failed: {', '.join(failed) or 'see the messages above'}."]
    if waiting:
        lines.append(f"Not run, since they need what failed: {', '.join(waiting)}.")
    copies = sorted(path.name for path in (project.ROOT / "reports" / "failed").glob("*.ipynb"))
    if copies:
        lines.append(
            f"Notebooks with their tracebacks, in reports/failed/: {', '.join(copies)}",
        )
    elif failed:
        lines.append("Their messages stand above, after the name of the stage.")
    if rendered:
        lines.append(f"The report, without them: {project.report()}")
    else:
        lines.append("The report could not be rendered.")
    print("\n".join(lines), file=sys.stderr)


def render() -> int:
    """Run the report's stage and no other: it shows the results that are there."""
    return dvc("repro", "--single-item", "report")


def make_folders() -> None:
    """Make the folders that the report depends on.

    DVC takes an empty folder for a report without that chapter.
    """
    deps = YAML(typ="safe").load(project.ROOT / "dvc.yaml")["stages"]["report"]["deps"]
    for folder in (project.ROOT / dep for dep in deps if not Path(dep).suffix):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def running(command: str) -> Generator[None]:
    """Keep other runs out of this clone, and bring back what an interrupted stage lacks.

    Args:
        command: what was typed, for whoever is kept out.
    """
    with alone(command):
        _tell_dvc_of_no_git()
        try:
            yield
        except KeyboardInterrupt:
            outs.restore()
            raise


def _tell_dvc_of_no_git() -> None:
    """Let DVC run in an archive that was downloaded: it refuses a folder that Git does not know."""
    path = project.ROOT / ".dvc" / "config.local"
    if not path.exists() and not (project.ROOT / ".git").exists():
        write_text(path, "[core]\n    no_scm = true\n")


@contextlib.contextmanager
def naming_what_changed(lock: str) -> Generator[None, None, None]:
    """Name the one file of Git's that a run changes, and the command that takes it back.

    The sentence comes afterwards, also after Ctrl-C.
    """
    path = project.ROOT / lock
    before = path.read_bytes() if path.exists() else b""
    try:
        yield
    finally:
        if path.exists() and path.read_bytes() != before and project.differs(lock):
            print(
                f"{lock} now records what ran on this machine; the run changed nothing else that "
                f"Git holds. git checkout HEAD -- {lock} takes it back and loses no result: DVC's "
                "cache keeps them.",
                flush=True,
            )


def study(name: str) -> int:
    """Run a study of studies/<name>; its result lies in reports/local, beside the published one."""
    names = sorted(path.parent.name for path in (project.ROOT / "studies").glob("*/dvc.yaml"))
    folder = f"studies/{known(name, names, 'study')}"
    with (
        running(f"make study STUDY={name}"),
        naming_what_changed("dvc.lock"),  # of samples and references that the study reads
        naming_what_changed(f"{folder}/dvc.lock"),
    ):
        return dvc("repro", f"{folder}/dvc.yaml")


def announce(settings: params.Params, roles: Sequence[str]) -> None:
    """Print what will run, and how long that takes where nothing is there yet."""
    print(f"Profile {settings.profile}:", flush=True)
    for role in roles:
        teacher, names = settings.teacher(role), settings.of_teacher(role)
        line = f"  {role}: {teacher.source}, {len(names)} students ({', '.join(names)})"
        if settings.profile == "nano" and teacher.minutes:
            line += f", some {teacher.minutes} minutes on two cores"
        taken = {} if teacher.folder else hours.expected(settings, role)
        if taken:
            by_size = ", ".join(f"{value:,.0f} at {size} GB" for size, value in taken.items())
            line += f"; hours on one GPU by arithmetic: {by_size}"
        print(line, flush=True)
    print("Stages that are up to date are skipped; the others say what they do.", flush=True)


def targets(settings: params.Params, role: str) -> list[str]:
    """Return the stages of one teacher and its students."""
    stages = [f"source@{role}", f"sample@{role}", f"reference@{role}"]
    stages += [f"{stage}@{role}" for stage, roles in settings.teachers_of.items() if role in roles]
    for stage in ("distill", "evaluate"):
        stages += [f"{stage}@{name}" for name in settings.of_teacher(role)]
    return stages


def failures(settings: params.Params, roles: Sequence[str]) -> list[str]:
    """Return teachers' rows and students whose last run ended in an error."""
    names = []
    for role in roles:
        names += [project.teacher_row(role), *settings.of_teacher(role)]
    return [name for name in names if _error(name)]


def unfinished(stages: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the stages that failed in a run that has ended, and those that wait for them.

    A stage that failed is behind dvc.lock and needs none that is behind.

    Args:
        stages: those that were run; none means all.
    """
    from dvc.repo import Repo

    behind = [stage for stage in (*_sources_missing(), *stale()) if stage != "report"]
    if stages:
        behind = [stage for stage in behind if stage in stages]
    waiting = []
    with Repo(str(project.ROOT)) as repo:
        for stage in behind:
            needed = {dep.addressing for dep in repo.stage.collect(stage, with_deps=True)} - {stage}
            waiting += [stage] if needed & set(behind) else []
    return [stage for stage in behind if stage not in waiting], waiting


def _rows(stage: str) -> tuple[str, str]:
    """Return the rows of the report that a stage may be of: a student's, or a teacher's."""
    name = stage.partition("@")[2]
    return name, project.teacher_row(name)


def _sources_missing() -> list[str]:
    """Return the stages that note what a teacher is and have left nothing."""
    roles = reader.read_yaml(project.ROOT / "params.yaml")["teachers"]
    return [f"source@{role}" for role in roles if not project.source(role).is_dir()]


def _error(name: str) -> str:
    """Return the error of a row's last run, or what is wrong with the file that would say it."""
    run = Files().json(project.run_result(name), schema.RUN)
    return run.content.get("error") or run.damaged


def dvc(*words: str) -> int:
    """Run DVC at the root, and return its exit code; an interruption ends all it started."""
    command, environment = _dvc(words, project.ROOT)
    return signals.run(command, cwd=project.ROOT, env=environment)


def _dvc(words: Sequence[str], root: Path) -> tuple[list[str], dict[str, str]]:
    """Return a command of DVC's with this Python, whether or not its environment is activated."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONPATH": project.python_path(root),
    }
    return [sys.executable, "-m", "dvc", *words], environment


def stale(root: Path | None = None) -> list[str]:
    """Return the stages whose code or parameters are not those that dvc.lock records.

    Their outs need not be there.
    """
    root = root or project.ROOT
    command, environment = _dvc(("repro", "--dry", "--allow-missing", "--keep-going"), root)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    changed = would_run(output)
    if re.search("Unable to acquire lock|is busy", output):
        raise RuntimeError("another run is going on here: wait for it, or stop it")
    if done.returncode and not changed:
        raise RuntimeError(f"dvc repro --dry failed: {done.stderr.strip()}")
    return changed


def would_run(output: str) -> list[str]:
    """Return the stages that a dry run names.

    A stage whose deps are missing is named as failed, since it cannot be looked up.
    """
    names: dict[str, None] = {}
    for line in re.findall(r"(?:Running stage|failed to reproduce).*", output):
        names |= dict.fromkeys(re.findall(r"'([a-z@][^' ]*)'", line))
    # the stage that notes what a teacher is runs every time, and is never behind
    return [name for name in names if not name.startswith("source@")]


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
        "Run make repro, or python -m linattn.pipeline --accept for an edit that cannot alter "
        "results; then commit it.",
        file=sys.stderr,
    )
    return 1


def accept() -> int:
    """Record the code as it is now, after an edit that cannot alter results.

    The recorded outs stay. dvc commit needs all outs of a stage in the workspace; this needs
    nothing but the clone. A stage that never ran has nothing to keep and stays new. A stage with
    other parameters, data or another command stays stale, since those do alter results. What it
    had no dependency on until now is recorded, data too: its results were made without.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    try:
        with Repo(str(project.ROOT)) as repo, lock_repo(repo):
            stages = [stage for stage in repo.index.stages if _has_run(stage)]
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


def _has_run(stage: Any) -> bool:
    return not stage.frozen and all(out.hash_info for out in stage.outs)


def _renew(stage: Any) -> bool:
    """Record a stage's code and its new dependencies, and say whether dvc.lock held others."""
    files = [dep for dep in stage.deps if not hasattr(dep, "params")]
    code = [dep for dep in files if str(dep).startswith(CODE) or not dep.hash_info]
    before = [dep.hash_info for dep in code]
    for dep in code:
        dep.save()
    changed = before != [dep.hash_info for dep in code]
    if changed:
        stage.dump(update_pipeline=False)
    return changed


# Another profile, in a copy


def copy(folder: Path, profile: str) -> Path:
    """Copy the working tree into `folder`, with `profile` in its params.yaml.

    Results that lie in the folder stay. A teacher's files stay where they are: they may be tens of
    gigabytes.
    """
    apart = ("dvc.lock", "params.yaml", *PUBLISHED, *_left_where_they_are(profile))
    for path in PUBLISHED:
        shutil.rmtree(folder / path, ignore_errors=True)
    for path in files():
        if not path.startswith(apart):
            _refresh(project.ROOT / path, folder / path)
    for gone in set(files(folder)) - set(files()):
        if gone.startswith(("linattn/", "notebooks/", "kernels/", "tests/")):
            (folder / gone).unlink()
    _choose(folder, profile)
    cache = str(project.ROOT / ".dvc" / "cache").replace('"', '\\"')
    text = f'[core]\n    no_scm = true\n[cache]\n    dir = "{cache}"\n'  # in quotes: a comma, a #
    write_text(folder / ".dvc" / "config.local", text)
    return folder


def _left_where_they_are(profile: str) -> list[str]:
    """Name the folders of the profile's own teachers that lie in this repository."""
    content = reader.read_yaml(project.ROOT / "params.yaml")
    entries = content["profiles"][profile]["teachers"].values()
    places = [project.ROOT / _absolute(entry)["source"] for entry in entries]
    inside = [place for place in places if place.is_dir() and place.is_relative_to(project.ROOT)]
    names = [place.relative_to(project.ROOT).as_posix() for place in inside]
    return [f"{name}/" for name in names if not name.startswith("data/")]


def _refresh(source: Path, target: Path) -> None:
    """Copy a file that differs; another run in the copy finds the old one or the new one."""
    if target.is_file() and filecmp.cmp(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}{DRAFT}")
    shutil.copy2(source, draft)  # with its mode: .ci/run stays a program
    os.replace(draft, target)


def _choose(folder: Path, profile: str) -> None:
    """Write params.yaml with another profile into a folder, whole at any moment."""
    path = project.ROOT / "params.yaml"
    text, count = re.subn(r"^profile: .*$", f"profile: {profile}", path.read_text(), flags=re.M)
    if count != 1:
        raise ValueError(f"{path} has {count} lines that begin with 'profile:'; it needs one")
    with whole(folder / path.name) as draft:
        draft.write_text(text)
        if reader.read_yaml(path)["profiles"][profile]["teachers"]:
            _list_own(draft, profile)


def _list_own(draft: Path, profile: str) -> None:
    """Write a profile's own teachers and students where DVC reads the lists of stages.

    Paths that are relative to this repository become absolute, since the copy lies elsewhere.
    """
    content = reader.read_yaml(draft)
    numbers = content["profiles"][profile]
    own = {role: _absolute(entry) for role, entry in numbers["teachers"].items()}
    students = numbers.get("students", content["students"])
    everyone = own if "students" in numbers else {**content["teachers"], **own}
    roles = {student["teacher"] for student in students.values()}
    content["students"], content["pretrained"] = students, {}
    content["teachers"] = {role: entry for role, entry in everyone.items() if role in roles}
    numbers["teachers"] = own
    for use, named in content["teachers_of"].items():
        content["teachers_of"][use] = [role for role in named if role in content["teachers"]]
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.dump(_plain(content), draft)


def _plain(value: Any) -> Any:
    """Return a copy in which nothing is shared, so that YAML writes no anchors."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _absolute(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a teacher's entry whose paths hold in every folder; files of Git are in the copy."""
    changed = dict(entry)
    for key in ("source", "prompts"):
        path = project.ROOT / Path(str(entry.get(key) or "")).expanduser()
        if entry.get(key) and path.exists() and not str(entry[key]).startswith("data/"):
            changed[key] = str(path.resolve())
    return changed


def files(root: Path | None = None) -> list[str]:
    """Return the files that Git has or would take; without Git, all but what is made again."""
    root = root or project.ROOT
    listed = _listed_by_git(root) if project.in_git(root) else None
    if listed is not None:
        return sorted(path for path in set(listed) if path and (root / path).is_file())
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED and Path(folder, name) != root / ".dvc" / "cache"
        ]
        paths += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(path for path in paths if not path.startswith((*MADE, ".dvc/tmp/")))


MADE = (
    *(f"data/{name}/" for name in ("samples", "reference", "pictures")),
    *(f"reports/{name}/" for name in ("committed", "failed", "local", "notebooks", "pages")),
    "reports/index.html",
    "reports/leaderboard.html",
)


def _listed_by_git(root: Path) -> list[str] | None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:  # no git program
        return None
    return done.stdout.split("\0") if done.returncode == 0 else None


def elsewhere(profile: str, words: Sequence[str], module: str = "linattn.pipeline") -> int:
    """Run a command of this library for another profile in a copy, and return the exit code.

    An interruption of this process is one of the copy's, which says how to go on.
    """
    folder = copy(project.ROOT / ".scratch" / "profiles" / profile, profile)
    name = folder.relative_to(project.ROOT)
    print(f"Profile {profile} runs in a copy, {name}: nothing here changes.", flush=True)
    environment = {
        **os.environ,
        "PYTHONPATH": project.python_path(folder),
        "LINATTN_COMMIT": project.commit() or "",
    }
    try:
        return signals.run([sys.executable, "-m", module, *words], cwd=folder, env=environment)
    except KeyboardInterrupt:
        return signals.INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    if options.check:
        return check()
    if options.accept:
        return accept()
    if options.study is not None:
        return study(options.study)
    if options.profile not in (None, params.load().profile):
        # a misspelt name is refused before anything is copied
        _check_teacher(params.load(options.profile), options.teacher)
        words = ["--teacher", options.teacher] if options.teacher is not None else []
        return elsewhere(options.profile, words)
    with project.pipeline():  # never what was made by hand
        return repro(options.teacher)


def main(arguments: list[str] | None = None) -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m linattn.pipeline", description=description)
    parser.add_argument("--profile", help="run another profile than params.yaml's, in a copy")
    parser.add_argument("--teacher", help="only the stages of this role")
    parser.add_argument("--study", help="a pipeline of studies/ instead, e.g. plugins")
    parser.add_argument(
        "--accept", action="store_true", help="record an edit that cannot alter results in dvc.lock"
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether dvc.lock is in step with the code"
    )
    options = parser.parse_args(arguments)
    try:
        with signals.interruptible():
            return _run(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"linattn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "linattn: interrupted; what is finished is kept, and the same command goes on there",
            file=sys.stderr,
        )
        return signals.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
