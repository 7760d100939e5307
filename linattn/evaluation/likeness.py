"""Measure how alike two sets of pictures look to the eye, a network that has seen photographs.

- The eye was trained on ImageNet and on nothing of this repository, so it serves every teacher. It
  is not Inception: no number here is a published FID or KID.
- Pictures of a pair are drawn from the same noise. Their distance and KID need few pictures; FID
  fits a covariance of 1,280 features and is measured from 2,048 pictures on.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn import eye
from linattn.intervals import Result, summary
from linattn.reader import between, checked, typed
from linattn.world.marks import FID_PICTURES, check_features, judge_fid, judge_kid

BATCH = 64  # pictures that are floats at once
RULES = {"theirs": typed(), "seed": typed()}


def features(network: eye.Eye, pictures: Tensor) -> Tensor:
    """Return the eye's features of 8-bit pictures, (pictures, 1280), float64 on the CPU."""
    return torch.cat([eye.features(network, chunk / 255) for chunk in pictures.split(BATCH)])


@checked(ours=typed(), **RULES)
def eye_distance(ours: Tensor, theirs: Tensor, seed: int = 0) -> Result:
    """Average 1 - cosine of the features of pairs, with a bootstrap interval.

    Args:
        ours: features, (pictures, features).
        theirs: features of the other picture of each pair.
        seed: of the bootstrap.
    """
    check_features(ours, theirs)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"features are {tuple(ours.shape)}, the reference {tuple(theirs.shape)}; compare "
            "pictures of the same noise, one with one"
        )
    return summary((1 - F.cosine_similarity(ours, theirs)).clamp_min(0), seed)


@checked(ours=typed(), **RULES)
def likeness(ours: Tensor, theirs: Tensor, seed: int = 0) -> dict[str, Result]:
    """Return the distance of the pairs and the KID of the sets, and from 2,048 pictures the FID."""
    measures = {
        "eye_distance": eye_distance(ours, theirs, seed),
        "eye_kid": judge_kid(ours, theirs, seed),
    }
    if len(ours) >= FID_PICTURES:
        measures["eye_fid"] = judge_fid(ours, theirs, seed)
    return measures


@checked(prompts=between(1), **RULES)
def unrelated(theirs: Tensor, seed: int = 0, prompts: int | None = None) -> Result | None:
    """Return the distance of the teacher's pictures to others of its own; None of a single one.

    A model that ignores its prompt and its noise, and draws as well as the teacher, has it.

    Args:
        theirs: features of the teacher's pictures.
        seed: of the bootstrap.
        prompts: how many prompts the pictures take in turn; None where they do not repeat.
    """
    check_features(theirs, theirs)
    if len(theirs) < 2:
        return None
    return eye_distance(theirs.roll(_apart(len(theirs), prompts), 0), theirs, seed)


def _apart(count: int, prompts: int | None) -> int:
    """Return by how many places a picture's partner lies off: half the set, or the next to it.

    Half of 5,000 pictures is a multiple of 100 prompts, and every partner had the same prompt.
    """
    half = count // 2
    if prompts is None:
        return half
    nearest = sorted(range(1, count), key=lambda places: abs(places - half))
    unlike = (places for places in nearest if places % prompts and (count - places) % prompts)
    return next(unlike, half)
