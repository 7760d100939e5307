"""Read the names of params.yaml alone: what starts a stage need not import diffusers for them.

The stage itself reads the whole file, which checks every value.
"""

from typing import Any

from linattn import project, reader
from linattn.names import known


def profile() -> str:
    """Return the profile that params.yaml chooses."""
    return str(_entry(_content(), "profile", ""))


def require(key: str, name: str, of_profile: str | None = None) -> None:
    """Raise ValueError where a profile has no student or teacher of this name.

    Args:
        key: "students" or "teachers".
        name: the student's name or the teacher's role.
        of_profile: the profile; None takes the one that params.yaml chooses.
    """
    content = _content()
    profiles = _entry(content, "profiles", {})
    chosen = known(of_profile or _entry(content, "profile", ""), profiles, "profile")
    own = _entry(profiles[chosen], key, {})
    common = {} if _entry(profiles[chosen], "students", {}) else _entry(content, key, {})
    known(name, {**common, **own}, key.removesuffix("s"))


def _content() -> Any:
    return reader.read_yaml(project.ROOT / "params.yaml")


def _entry(content: Any, key: str, default: Any) -> Any:
    """Return the value of a key, or the default where it is missing or of another type."""
    value = reader.mapping(content, "params.yaml").get(key, default)
    return value if isinstance(value, type(default)) else default
