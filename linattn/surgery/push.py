"""Upload a student to the Hugging Face hub, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linattn import project
from linattn.attention import OPERATORS, options
from linattn.names import shortened
from linattn.surgery import card, modelcard
from linattn.surgery.hub import HUB_ID
from linattn.surgery.modelcard import called
from linattn.surgery.student import Entry, Student

Content = str | Path | Mapping[str, Any]  # a JSON file, or what it holds
README = "README.md"
MESSAGE = "Upload a student of linattn"
NO_RIGHT = (401, 403)  # what the hub answers to whom it does not know, or who may not write


def push(
    folder: str | Path,
    repo: str,
    *,
    results: Content | None = None,
    run: Content | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    message: str = MESSAGE,
) -> str:
    """Upload a saved student with a model card in one commit, and return the commit's address.

    `linattn.load(pipe, "user/name")` takes it back. Only linattn.json, linattn.safetensors and the
    model card are uploaded, whatever else the folder holds. The folder is not written to.

    Args:
        folder: a folder that `save` wrote.
        repo: the repository on the hub, as in "user/name"; it is made where it is missing.
        results: the student's result, a file of reports/results or what it holds. The model card
            then has errors with intervals, cost, seeds and profile.
        run: the student's run file, or what it holds: hardware, versions and seconds.
        license: the licence of the base by the hub's name, such as "apache-2.0".
        private: whether a repository that is made is private; None makes it public unless its
            organisation has another default.
        token: a token of the hub that may write; None takes the one that is saved here.
        message: the summary of the commit.
    """
    _check_repo(repo)
    student = card.read(Path(folder), {})
    _check_layers(student)
    result, facts = _content(results), _content(run)
    _check_result(student, result)
    _check_run(student, facts)
    text = modelcard.write(modelcard.Source(repo, student, result, facts, license))
    return _upload(student.path, repo, text, private, token, message)


# Before anything is sent
# ---------------------------------------------------------------------------------------------


def _check_repo(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # takes a second

    reason = "" if HUB_ID.fullmatch(repo) else "it has no owner and name"
    if not reason:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            reason = str(error)
    if reason:
        raise ValueError(
            f"{repo!r} is no repository of the Hugging Face hub ({reason}); name one as 'user/name'"
        )


def _check_layers(student: Student) -> None:
    """Raise if a layer of the card has no weights."""
    if not student.entries:
        raise ValueError(f"{student.path / card.CARD} replaces no layer; push a linearised student")
    for entry in student.entries:
        if not any(name.startswith(f"{entry.name}.") for name in student.tensors):
            raise ValueError(
                f"{student.path / card.CARD} replaces {entry.name}, of which {card.WEIGHTS} has no "
                "weights; save the student again"
            )


def _content(source: Content | None) -> Mapping[str, Any]:
    if source is None or isinstance(source, Mapping):
        return source or {}
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; pass a JSON file or what it holds")
    content = project.read_json(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the keys of a result")
    return content


def _check_result(student: Student, result: Mapping[str, Any]) -> None:
    """Raise if a result is of another operator, other options or another base."""
    if not result:
        return
    if not isinstance(result.get("operator"), str):
        raise ValueError("results name no operator; pass a student's file of reports/results")
    theirs = called(result["operator"], result.get("options") or {})
    for entry in student.entries:
        if not _agree(entry, result["operator"], result.get("options") or {}):
            raise ValueError(
                f"results are of {theirs}, and {student.path} has "
                f"{called(entry.operator, entry.options)} in {entry.name}; pass this student's"
            )
    _check_base(student, result)


def _agree(entry: Entry, operator: str, named: Mapping[str, Any]) -> bool:
    """Say whether a layer has these options, and the operator's defaults elsewhere."""
    if entry.operator != operator:
        return False
    table = OPERATORS[operator].table if operator in OPERATORS else {}
    defaults = {name: table[name].default for name in entry.options if name in table}
    return _canonical(operator, {**defaults, **named}) == _canonical(operator, entry.options)


def _canonical(operator: str, named: Mapping[str, Any]) -> Any:
    """Return options in the form in which they are compared, as JSON has them."""
    table = OPERATORS[operator].table if operator in OPERATORS else {}
    values = {
        name: options.check(operator, table, name, value) if name in table else value
        for name, value in named.items()
    }
    if "schedule" in values:
        values["schedule"] = [_canonical(operator, changes) for changes in values["schedule"]]
    return json.loads(json.dumps(values))


def _check_base(student: Student, result: Mapping[str, Any]) -> None:
    ours = (student.base or {})["name"].rpartition("/")[2]
    theirs = result.get("folder", ours)
    if theirs != ours:
        raise ValueError(
            f"results are of a student of {theirs!r}, and {student.path} is one of {ours!r}; pass "
            "this student's"
        )


def _check_run(student: Student, run: Mapping[str, Any]) -> None:
    """Raise if a run file lacks a layer of the student; it names layers that keep softmax too."""
    theirs = run.get("backend")
    lacking = [entry.name for entry in student.entries if theirs and entry.name not in theirs]
    if theirs and lacking:
        raise ValueError(
            f"the run is of a model with {shortened(list(theirs), 1)}, and {student.path} replaces "
            f"{shortened(lacking, 1)}; pass this student's run file"
        )


# The upload
# ---------------------------------------------------------------------------------------------


def _upload(
    folder: Path,
    repo: str,
    text: str,
    private: bool | None,
    token: str | bool | None,
    message: str,
) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    files = {name: folder / name for name in (card.CARD, card.WEIGHTS)} | {README: text.encode()}
    try:
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_repo(repo, private=private, exist_ok=True)
        return api.create_commit(repo, operations, commit_message=message).commit_url
    except Exception as error:  # the network and the hub raise errors of many types
        raise ConnectionError(
            f"{repo!r} was not pushed: {_answer(error, api.endpoint)}; {folder} is as it was"
        ) from error


def _answer(error: BaseException, endpoint: str) -> str:
    """Say which address answered what, and what to do where the hub refuses the writer."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        return f"{endpoint} did not take it ({type(error).__name__}: {_first_line(str(error))})"
    status = cause.response.status_code
    address = str(cause.response.url).partition("?")[0]  # a query may hold a signature
    reason = cause.server_message or _first_line(str(cause))
    remedy = "; log in by `hf auth login` or pass a token that may write"
    return f"{address} answered {status} ({reason})" + (remedy if status in NO_RIGHT else "")


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "no reason"
