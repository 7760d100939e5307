"""Say from which size a faster attention pays, for one model on this device.

- `python -m linattn.advise MODEL --side 1024 2048` needs no weights: the model's shapes are read
  from its config, and random tensors of these shapes are timed.
- Softmax has several implementations, and the fastest of them here is what an operator has to
  beat. What is not installed, or does not run on this device, is named with the reason.
- A step is what lies outside the attention, timed part by part, and the attention of all layers.
- What would take too long is not run. It is extrapolated by its own growth and marked so.
"""

from linattn.advise.advice import Advice, Outside, Point
from linattn.advise.advising import advise
from linattn.advise.verdict import Crossover

__all__ = ["Advice", "Crossover", "Outside", "Point", "advise"]
