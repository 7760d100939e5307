"""Scores that other papers publish, where their networks are at hand: CLIP's and Inception's.

- They are asked for in params.yaml (`scores: [clip, inception]`) and computed by torchmetrics.
- Their packages and weights are no dependency. What is not there, or means nothing for a teacher,
  is left out with its reason, and the row stands without it.
- CLIPScore compares a picture with its caption. Inception's Frechet distance compares a student's
  pictures with its teacher's; it is no published FID, which compares with photographs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore

from linattn import project
from linattn.evaluation.bench import Bench
from linattn.intervals import Result, summary

CLIP = "openai/clip-vit-large-patch14"
FEATURES = 2048  # of Inception; fewer pictures do not determine their covariance
NEEDS = {
    "clip": f"the weights of {CLIP}",
    "inception": "the package torch-fidelity and the weights of Inception that it downloads",
}
KEYS = {"clip": "clip_score", "inception": "inception_fid"}  # of the measures

# A metric of torchmetrics by the name of its score; tests put stand-ins here.
METRICS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPScore(CLIP),
    "inception": lambda: FrechetInceptionDistance(feature=FEATURES),
}


@functools.cache
def metric(name: str) -> nn.Module | str:
    """Return the metric of a score on the project's device, or the reason why it is not there."""
    try:
        return METRICS[name]().to(project.device())
    except Exception as error:  # loaders of other packages raise whatever they meet
        return f"it needs {NEEDS[name]}, and loading them raised {type(error).__name__}"


def left_out(bench: Bench) -> dict[str, str]:
    """Return the scores that were asked for and are not measured, each with the reason."""
    reasons = {name: _reason(bench, name) for name in bench.evaluation.scores}
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(bench: Bench, name: str) -> str:
    pictures = bench.evaluation.pictures
    if name == "clip" and not bench.captioned:
        return "it compares pictures with captions, and this teacher reads labels"
    if name == "inception" and pictures < FEATURES:
        return f"it takes {FEATURES:,} pictures or more, and a row has {pictures:,}"
    loaded = metric(name)
    return loaded if isinstance(loaded, str) else ""


def of_student(bench: Bench, pictures: Tensor) -> dict[str, Result]:
    """Return the scores of a student's pictures, (count, 3, height, width) in 8 bits."""
    return _measures(bench, pictures, SCORES)


def of_teacher(bench: Bench, pictures: Tensor) -> dict[str, Result]:
    """Return the scores of the teacher's pictures, to which Inception's have no distance."""
    return _measures(bench, pictures, {"clip": clip_score})


def _measures(
    bench: Bench, pictures: Tensor, scores: Mapping[str, Callable[[Bench, Tensor], Result]]
) -> dict[str, Result]:
    missing = left_out(bench)
    names = [name for name in bench.evaluation.scores if name in scores and name not in missing]
    return {KEYS[name]: scores[name](bench, pictures) for name in names}


@torch.no_grad()
def clip_score(bench: Bench, pictures: Tensor) -> Result:
    """Return 100 times the cosine of picture and caption, from 0 on, as a mean over pictures."""
    clip: Any = metric("clip")
    values = []
    for picture, caption in zip(pictures, bench.prompts(len(pictures)), strict=True):
        clip.reset()
        clip.update(picture[None].to(project.device()), [caption])
        values.append(clip.compute().item())
    return summary(torch.tensor(values), bench.evaluation.seed)


@torch.no_grad()
def inception_fid(bench: Bench, pictures: Tensor) -> Result:
    """Return the Frechet distance to the teacher's pictures in Inception's features."""
    inception: Any = metric("inception")
    inception.reset()
    for drawn, is_teachers in ((bench.reference["pictures"], True), (pictures, False)):
        for batch in drawn.split(bench.evaluation.batch):
            inception.update(batch.to(project.device()), real=is_teachers)
    value = inception.compute().item()
    return {"value": value, "low": None, "high": None, "n": len(pictures)}


SCORES = {"clip": clip_score, "inception": inception_fid}
