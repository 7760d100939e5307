"""An IP-Adapter: a picture in the place of a caption, read by keys and values of its own in cross-attention.

- The four tokens of a picture begin as what the text encoder says of colour, shape and background (`words`), which the
  UNet can read already. Begun at random, with an encoder of fewer pictures, 12 % of 32 had the right shape after 700
  steps, and 97 % the colour.
- Most of its captions are empty: a caption that says everything leaves nothing for the picture to say.
- It is trained where diffusers' own loader has put it, and stored in the published layout: models/ip.safetensors beside
  models/image_encoder.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from linattn import world
from linattn.studies.plugins import batch, encoder, marks
from linattn.studies.plugins.plugin import Plugin, Question, scenes
from linattn.studies.plugins.recipe import Recipe, learn
from linattn.teachers import Teacher

PLACE, FILE = "models", "ip.safetensors"
TOLD = (2, 3, 5, 6)  # tokens of "begin a red ring on sand dots end" that a picture becomes: as many as the loader wants
EMPTY = 0.6  # of the captions, beyond those that every training drops
HIDDEN = 0.1  # of the pictures


class Adapter(Plugin):
    name = "adapter"
    what = "an IP-Adapter with an image encoder"
    obeys = ("shape", "colour", "background")

    def make(self, teacher: Teacher, recipe: Recipe, scratch: Path, folder: Path) -> list[dict[str, Any]]:
        eye, seen = encoder.train(recipe.encoder, teacher.card["side"], scratch / "encoder", teacher.device)
        projection, said = words(teacher, eye, recipe.words, scratch / "words")
        store(_state(projection, _text(teacher.model)), eye, scratch / "fresh")
        pipe = self.mount(copy.deepcopy(teacher.pipe), scratch / "fresh")
        rows = _tune(teacher, pipe, recipe, scratch)
        (projection,) = pipe.unet.encoder_hid_proj.image_projection_layers
        store(_state(projection, _own(pipe.unet)), eye, folder)
        parts = {"encoder": seen, "words": said, "plugin": rows}
        return [{**row, "stage": stage} for stage, part in parts.items() for row in part]

    def mount(self, pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
        pipe.load_ip_adapter(folder, subfolder=PLACE, weight_name=FILE)
        return pipe

    def silence(self, pipe: DiffusionPipeline) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(0.0)
        return {}

    def remove(self, pipe: DiffusionPipeline) -> None:
        pipe.unload_ip_adapter()

    def questions(self, count: int, seed: int, side: int) -> dict[str, Question]:
        told = scenes(count, seed)
        return {"no caption": Question([""] * count, told, world.render(told, side), at_once=1)}

    def given(self, pipe: DiffusionPipeline, question: Question) -> dict[str, Any]:
        (shown,) = question.shown.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return {"ip_adapter_image": Image.fromarray(shown)}

    def marks(self, eye: nn.Module, pictures: Tensor, question: Question) -> dict[str, Tensor]:
        kinds = tuple(world.BACKGROUNDS)
        wanted = torch.tensor([kinds.index(scene.background.kind) for scene in question.scenes])
        return {**marks.asked(eye, pictures, question.scenes), "background": marks.backgrounds(pictures) == wanted}


def words(
    teacher: Teacher, eye: CLIPVisionModelWithProjection, recipe: Recipe, scratch: Path
) -> tuple[ImageProjection, list[dict[str, Any]]]:
    """From the encoder's vector to four states of the text encoder: where the caption names what the picture shows."""
    width, side = teacher.model.config.cross_attention_dim, teacher.card["side"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        projection = ImageProjection(encoder.VECTOR, width, len(TOLD)).to(teacher.device)

    def loss(step: int) -> Tensor:
        told, dice = batch.of_step(recipe.seed, step, recipe.batch)
        hidden = torch.rand(len(told), generator=dice) < HIDDEN
        captions = ["" if each else plainly(scene) for scene, each in zip(told, hidden.tolist(), strict=True)]
        with torch.no_grad():
            states = teacher.conditions.rows(captions)["encoder_hidden_states"][:, list(TOLD)]
        return F.mse_loss(projection(vectors(eye, world.render(told, side), hidden)), states)

    return projection, learn(recipe, projection, list(projection.named_parameters()), loss, scratch)


def plainly(scene: world.Scene) -> str:
    """Its caption without a size, so that every word has its place."""
    thing = scene.things[0]
    return f"a {thing.colour} {thing.shape} on {scene.background}"


@torch.no_grad()
def vectors(eye: nn.Module, pictures: Tensor, hidden: Tensor) -> Tensor:
    """(pictures, VECTOR); zero, as the pipelines' own, where nothing is shown."""
    found = eye(encoder.pixels(pictures.to(eye.device))).image_embeds
    return found.masked_fill(hidden[:, None].to(found.device), 0.0)


def _tune(teacher: Teacher, pipe: DiffusionPipeline, recipe: Recipe, scratch: Path) -> list[dict[str, Any]]:
    """All that the adapter has in the UNet, by the UNet's own loss."""
    unet, whole = pipe.unet, teacher.card["side"]
    own = [(name, p) for name, p in unet.named_parameters() if ".processor." in name or "encoder_hid_proj." in name]

    def loss(step: int) -> Tensor:
        told, dice = batch.of_step(recipe.seed, step, recipe.batch)
        empty, hidden = (torch.rand(len(told), generator=dice) < share for share in (EMPTY, HIDDEN))
        captions = ["" if each else scene.caption for scene, each in zip(told, empty.tolist(), strict=True)]
        given = batch.draw(teacher, told, captions, recipe.side(step, whole), dice)
        shown = vectors(pipe.image_encoder, world.render(told, whole), hidden)[:, None]
        return given.loss(unet, added_cond_kwargs={"image_embeds": [shown]})

    return learn(recipe, unet, own, loss, scratch)


# The published layout ------------------------------------------------------------------------------------------------


def _text(unet: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values for text, by the layout's number of a cross-attention: its place among all attentions."""
    attentions = enumerate(name.removesuffix(".processor") for name in unet.attn_processors)
    crossed = {number: unet.get_submodule(name) for number, name in attentions if ".attn2" in name}
    return {number: (attn.to_k.weight, attn.to_v.weight) for number, attn in crossed.items()}


def _own(unet: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values for the picture."""
    processors = {n: each for n, each in enumerate(unet.attn_processors.values()) if hasattr(each, "to_k_ip")}
    return {number: (each.to_k_ip[0].weight, each.to_v_ip[0].weight) for number, each in processors.items()}


def _state(projection: ImageProjection, pairs: dict[int, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    parts = {"proj": projection.image_embeds, "norm": projection.norm}
    state = {f"image_proj.{part}.{name}": p for part, layer in parts.items() for name, p in layer.named_parameters()}
    for number, (key, value) in pairs.items():
        state |= {f"ip_adapter.{number}.to_k_ip.weight": key, f"ip_adapter.{number}.to_v_ip.weight": value}
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def store(state: dict[str, Tensor], eye: CLIPVisionModelWithProjection, folder: Path) -> None:
    eye.save_pretrained(folder / PLACE / "image_encoder")
    save_file(state, folder / PLACE / FILE)
