"""Distil a student on your own prompts: the teacher draws them, the student learns from these.

    python examples/distil_on_your_prompts.py [--prompts prompts.txt] [--model ...] [--out student]

PROMPTS is your list; --prompts reads a text file instead, one prompt a line. The model is the small
Stable Diffusion of this repository, which knows the words of its small world alone. For another one
change the line MODEL, say to "stable-diffusion-v1-5/stable-diffusion-v1-5", and take more PICTURES
and STEPS on a GPU.

It leaves in the folder --out what the teacher drew, the student (its replaced layers alone) and a
picture, and prints beside the training's progress

    not distilled: the prediction errs by 22.3 % of the teacher's square
    distilled: the prediction errs by 0.9 % of the teacher's square
    student/pictures.png
"""

import argparse
from pathlib import Path

import torch

import linattn
from linattn import figures, samples, sampling, teachers
from linattn.distill import DistillConfig, distill
from linattn.evaluation.distance import prediction_error

MODEL = Path(__file__).resolve().parents[1] / "data/teachers/sd-nano"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATOR, OPTIONS = "linfusion", {}
PICTURES = 32  # that the teacher draws to learn from
STEPS = 40  # of training layer by layer, and as many end to end
PROMPTS = [
    "a yellow square on black",
    "a red ring on sand stripes",
    "a small blue star right of a large green heart on slate",
    "a pink moon on white dots",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt a line")
    parser.add_argument("--model", default=str(MODEL), help="a folder or hub id of diffusers")
    parser.add_argument("--out", type=Path, default=Path("student"), help="the folder to write")
    args = parser.parse_args()
    lines = args.prompts.read_text().splitlines() if args.prompts else PROMPTS
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        parser.error(f"{args.prompts} holds no prompt; write one a line")
    teacher = teachers.load(args.model, DEVICE)

    data = samples.write(teacher, args.out / "samples", PICTURES, captions=prompts, steps=10)
    training = {"layerwise_steps": STEPS, "steps": STEPS, "batch": 8}
    distilled = distill(DistillConfig(OPERATOR, OPTIONS, **training), teacher, data).model
    linattn.save(distilled, args.out / "layers")

    # Loaded again into a fresh pipeline, as somebody else would.
    student = teachers.load(args.model, DEVICE)
    linattn.load(student.pipe, args.out / "layers")
    undistilled = teachers.load(args.model, DEVICE)
    linattn.linearize(undistilled.pipe, OPERATOR, **OPTIONS)

    # Both are judged on latents of other noise than those that the student learned from.
    latents = sampling.draw_latents(teacher, prompts, seed=1)
    drawn = {"teacher": teacher.decode(latents)}
    for name, model in {"not distilled": undistilled, "distilled": student}.items():
        error = prediction_error(teacher, model.model, (latents, prompts))["mean"]["value"]
        print(f"{name}: the prediction errs by {100 * error:.1f} % of the teacher's square")
        drawn[name] = sampling.draw(model, prompts, seed=1)
    (args.out / "pictures.png").write_bytes(figures.grid(drawn, prompts).png)
    print(args.out / "pictures.png")


if __name__ == "__main__":
    main()
