"""Say what a training takes of a device's memory, without running it.

`python -m linattn.memory` prints a table of published models, and `python -m linattn.memory
--teacher FOLDER` the line of a pipeline's folder. `check` compares with the device before a
training begins.
"""

from linattn.memory.device import check
from linattn.memory.need import Need, needed
from linattn.memory.step import Shapes

__all__ = ["Need", "Shapes", "check", "needed"]
