"""Rehearse the protocol on real models without their weights: `make rehearse`.

- Pipelines are written in the layout, with the classes and at the widths of SD 1.5, PixArt-Sigma,
  SD3.5-M and FLUX.1-dev. Their weights are random; on a CPU they have fewer blocks.
- The stages of the pipeline then run on these folders as on any user's, from notes to report, by
  the profile `rehearse`, without network.
- Pictures of random weights show nothing. What a rehearsal shows is that a model of this shape
  passes every stage on this machine: its memory fits, and its student is saved and read back.
"""

from linattn.rehearse.folders import write
from linattn.rehearse.run import rehearse

__all__ = ["rehearse", "write"]
