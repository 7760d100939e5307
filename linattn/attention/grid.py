"""How the tokens of one forward lie on the picture.

- Text tokens first (if the family has any), then the picture's rows from top to bottom, each from
  left to right.
- A `Grid` is a value: operators get it with every call and keep none, so one module serves every
  size.
- Height and width are both given: the number of tokens alone does not tell 8 x 32 from 16 x 16.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import register_constant


@dataclass(frozen=True)
class Grid:
    """Say how the tokens of a picture lie: row by row, after the text."""

    height: int  # rows of the picture's tokens
    width: int  # columns of the picture's tokens
    text: int = 0  # how many text tokens come before the picture

    def __post_init__(self):
        for name, least in (("height", 1), ("width", 1), ("text", 0)):
            size = getattr(self, name)
            # torch.compile carries sizes as SymInt, which is no int.
            if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) or size < least:
                raise ValueError(
                    f"a grid's {name} is a whole number of tokens from {least} on, not {size!r}"
                )

    @property
    def picture(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.text + self.picture

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the picture's tokens as (batch, height, width, ...), without a copy."""
        return tokens[:, self.text :].unflatten(1, (self.height, self.width))

    def settled(self) -> "Grid":
        """Return the same grid in plain numbers, also while torch.compile leaves sizes open.

        A loop over chunks is a graph for each size anyway. DeltaNet's took 33 s of a core to trace
        with open sizes, and 5 s with a settled grid.
        """
        sides = self.height, self.width, self.text
        height, width, text = (len(range(side)) for side in sides)
        return Grid(height, width, text)


# A caller hands a grid down to a model that is exported: a constant of the program.
register_constant(Grid)
