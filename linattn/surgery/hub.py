"""Find a student's files on this machine, or download them from the Hugging Face hub."""

import re
from pathlib import Path

from linattn import files
from linattn.names import short
from linattn.surgery import card, linfusion

CARDS = [card.CARD, linfusion.CONFIG]
LONGEST = 4096  # characters of a path
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


def local(folder_or_hub_id: str | Path, revision: str | None) -> Path:
    """Return the local folder or file of a student, downloaded where the argument is a hub id."""
    path = files.path_of(folder_or_hub_id, "the student")
    if len(str(path)) > LONGEST:
        raise ValueError(f"there is no folder {short(str(path))}: it is too long for a path")
    if path.is_dir() or (path.suffix == ".safetensors" and path.is_file()):
        return path  # CLEAR's release is a single file
    if path.exists():
        raise ValueError(
            f"{path} is a file; a student is a folder with {card.CARD} and {card.WEIGHTS}"
        )
    if not HUB_ID.fullmatch(str(folder_or_hub_id)):
        raise ValueError(
            f"there is no folder {str(path)!r}, and it is no id of the Hugging Face hub "
            "(owner/name)"
        )
    # The cards come first: with the id of a base in place of a student's, the weights would be tens
    # of gigabytes.
    cards = _downloaded(path, revision, CARDS)
    if not card.recognises(cards) and not linfusion.recognises(cards):
        raise ValueError(
            f"{path} on the Hugging Face hub is no student: it has neither {card.CARD} nor "
            f"LinFusion's {linfusion.CONFIG}; is it the base's id? (CLEAR's files are read from a "
            "path: download the one you want)"
        )
    return _downloaded(path, revision, [*CARDS, "*.safetensors"], ["*/*"])


def _downloaded(
    name: Path, revision: str | None, allowed: list[str], ignored: list[str] | None = None
) -> Path:
    # takes a second to import, and a local folder does not need it
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name.as_posix(), revision=revision, allow_patterns=allowed, ignore_patterns=ignored
        )
    except Exception as error:  # the network, the hub and its cache raise errors of many types
        reason = str(error).splitlines()[0] if str(error) else "no reason"
        raise ValueError(
            f"there is no folder {str(name)!r}, and the Hugging Face hub did not give it either "
            f"({type(error).__name__}: {reason})"
        ) from error
    return Path(folder)
