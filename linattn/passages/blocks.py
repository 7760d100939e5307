"""A block is a passage of README.md or docs/ that is written from results, between two marks."""

from collections.abc import Callable
from dataclasses import dataclass

from linattn.report.data import Report


@dataclass(frozen=True)
class Block:
    path: str  # of the Markdown file, from the repository's root
    mark: str  # its name in the marks
    write: Callable[[Report], str]

    @property
    def begin(self) -> str:
        return f"<!-- {self.mark}: written by python -m linattn.readme -->"

    @property
    def end(self) -> str:
        return f"<!-- end of {self.mark} -->"

    def put(self, text: str, content: str) -> str:
        """Return the text with `content` between the marks."""
        before, _, rest = self._parts(text)
        return f"{before}{self.begin}\n{content}\n{self.end}{rest}"

    def content(self, text: str) -> str:
        """Return what stands between the marks of a text."""
        return self._parts(text)[1].strip("\n")

    def _parts(self, text: str) -> tuple[str, str, str]:
        """Return the text before the marks, between them and after them."""
        counts = text.count(self.begin), text.count(self.end)
        if counts != (1, 1):
            raise ValueError(
                f"{self.path} has the line {self.begin!r} {counts[0]} times and {self.end!r} "
                f"{counts[1]} times; write both, once each and in this order"
            )
        before, rest = text.split(self.begin)
        if self.end not in rest:
            raise ValueError(
                f"{self.path} has {self.end!r} before {self.begin!r}; write them once each and in "
                "the other order"
            )
        between, after = rest.split(self.end)
        return before, between, after
