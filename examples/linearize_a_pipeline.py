"""Replace the self-attention of a pipeline, draw before and after from the same noise, restore it.

    python examples/linearize_a_pipeline.py [--model FOLDER_OR_HUB_ID] [--out linearized.png]

The model is the small Stable Diffusion of this repository. For another one change the line MODEL,
say to "stable-diffusion-v1-5/stable-diffusion-v1-5". Nothing is trained here, so the pictures of
the middle row are worse than the others; distil_on_your_prompts.py goes on from there.

It writes one picture with the rows before, replaced and restored, and prints

    down_blocks.0.attentions.0.transformer_blocks.0.attn1: clear, torch (the tensors are on the CPU)
    ... a line for each of 7 layers
    replaced: pictures differ by 5.8 % of full scale in the mean
    restored: bit for bit the pictures of before
    linearized.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid

import linattn

MODEL = Path(__file__).resolve().parents[1] / "data/teachers/sd-nano"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATOR, OPTIONS = "clear", {"radius": 3}
PROMPTS = ["a yellow square on black", "a red ring on sand stripes", "a green heart on slate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL), help="a folder or hub id that takes prompts")
    parser.add_argument("--out", type=Path, default=Path("linearized.png"), help="the picture")
    args = parser.parse_args()
    if args.out.suffix not in (".png", ".jpg"):
        parser.error(f"--out {args.out} is no picture's name, as in linearized.png")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(args.model).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)

    before = draw(pipe)
    linattn.linearize(pipe, OPERATOR, **OPTIONS)  # in place; the rest of the pipeline is untouched
    for layer in linattn.describe(pipe):
        print("{name}: {operator}, {backend} ({because})".format(**layer))
    replaced = draw(pipe)
    linattn.restore(pipe)
    restored = draw(pipe)

    change = np.abs(pixels(replaced) - pixels(before)).mean()
    print(f"replaced: pictures differ by {100 * change:.1f} % of full scale in the mean")
    equal = np.array_equal(pixels(restored), pixels(before))
    print(f"restored: {'bit for bit' if equal else 'NOT'} the pictures of before")
    make_image_grid(before + replaced + restored, rows=3, cols=len(PROMPTS)).save(args.out)
    print(args.out)


def draw(pipe):
    noise = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
    return pipe(PROMPTS, num_inference_steps=20, guidance_scale=3.0, generator=noise).images


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures]) / 255


if __name__ == "__main__":
    main()
