"""Write the folders of the profile `rehearse`, and run the pipeline on them."""

import time
from collections.abc import Sequence

import torch

from linattn import params, pipeline, project
from linattn.names import known
from linattn.rehearse.folders import write

PROFILE = "rehearse"


def rehearse(roles: Sequence[str] = (), full_depth: bool | None = None) -> int:
    """Write the pipelines that lack, run every stage on them, and return the exit code.

    Args:
        roles: teachers of the profile `rehearse`; none names all of them.
        full_depth: whether the models are as deep as the published ones; None: on a GPU.
    """
    settings = params.load(PROFILE)
    chosen = [known(role, settings.teachers, "teacher to rehearse") for role in roles]
    full_depth = torch.cuda.is_available() if full_depth is None else full_depth
    began = time.monotonic()
    for role in chosen or settings.teachers:
        teacher = settings.teacher(role)
        print(f"{role}: random weights in {teacher.source}", flush=True)
        write(role, project.ROOT / teacher.source, full_depth=full_depth)
    code = 0
    for words in [["--teacher", role] for role in chosen] or [[]]:
        code = pipeline.elsewhere(PROFILE, words) or code
    depth = "as deep as the published models" if full_depth else "with fewer blocks"
    print(f"Rehearsed {depth} in {time.monotonic() - began:.0f} s.", flush=True)
    return code
