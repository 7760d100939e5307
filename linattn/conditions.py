"""How a pipeline's model is told what to draw: labels or captions as arguments of its forward, and back to latents.

- What is asked for is a row a picture: a tensor of labels (DiT) or a list of captions.
- `rows` are tensors by the forward's own names, a row a picture, so that a batch can be cut, doubled and dropped
  without knowing which family it is for. Captions are read by the pipeline's own `encode_prompt`.
- Latents are (batch, channels, height, width) everywhere outside; FLUX packs 2 x 2 of them into a token here.
- Times are those of the scheduler, up to 1,000; FLUX's model takes a thousandth of it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Asked = Tensor | Sequence[str]
Rows = dict[str, Tensor]

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are


class Conditions:
    """One family's; siblings differ in what they read and in how the model is called."""

    latent = "hidden_states"  # the forward's name for what is denoised
    square = False  # whether the model draws nothing else
    guided = False  # whether the model itself is told the guidance, instead of being asked twice

    def __init__(self, pipe: Any, card: Mapping[str, Any]):
        self.pipe, self.card = pipe, card

    @property
    def model(self) -> nn.Module:
        return _model(self.pipe)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def channels(self) -> int:
        return self.model.config.in_channels

    @property
    def unit(self) -> int:
        """Latent positions that a side must divide by."""
        return self.model.config.patch_size

    @property
    def side(self) -> int:
        """Of the latents it was trained at."""
        return self.model.config.sample_size

    def defaults(self) -> dict[str, Any]:
        """Steps and guidance of the pipeline's own call."""
        told = inspect.signature(type(self.pipe).__call__).parameters
        return {"steps": told["num_inference_steps"].default, "guidance": told["guidance_scale"].default}

    def check(self, asked: Any) -> Asked:
        """What is asked for as it is used, or a ValueError."""
        raise NotImplementedError

    def words(self, asked: Asked) -> list[str]:
        """What is asked for as a person reads it."""
        raise NotImplementedError

    def rows(self, asked: Asked) -> Rows:
        raise NotImplementedError

    def nothing(self) -> Rows:
        """The one row that guidance leads away from, and that a dropped condition becomes."""
        raise NotImplementedError

    def arguments(self, noisy: Tensor, t: Tensor, rows: Rows) -> dict[str, Any]:
        return {self.latent: noisy, "timestep": t, **cast(rows, noisy.dtype)}

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        """The model's output as (batch, channels or twice as many, height, width)."""
        return output

    def call(self, model: nn.Module, noisy: Tensor, t: Tensor, rows: Rows) -> Tensor:
        told = self.arguments(noisy, t, rows)
        output = model(told.pop(self.latent), **told, return_dict=False)[0]
        return self.latents(output, noisy)

    @torch.no_grad()
    def example(self, height: int, width: int, asked: Asked, noise: float = 0.5) -> dict[str, Any]:
        """Arguments of a forward at one noise level, for latents of this size: what a cost is counted on."""
        weight = next(self.model.parameters())
        noisy = weight.new_zeros(len(asked), self.channels, height, width)
        t = torch.full((len(asked),), min(999, round(noise * 1000)), device=weight.device)
        return self.arguments(noisy, t, self.rows(asked))

    @property
    def readers(self) -> list[nn.Module]:
        """The pipeline's text encoders."""
        return [part for name, part in self.pipe.components.items() if name.startswith("text_encoder") and part]

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        scheduler.set_timesteps(steps, device=like.device)

    def unscaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        """What the decoder takes: DiT's, SD's and PixArt's pipelines know a scaling factor and no shift."""
        return latents / vae.config.scaling_factor

    def scaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        return latents * vae.config.scaling_factor


class Labels(Conditions):
    """DiT: a class a picture."""

    square = True

    @property
    def classes(self) -> int:
        named = self.card.get("labels") or self.card.get("classes") or self.model.config.num_embeds_ada_norm
        return named if isinstance(named, int) else len(named)

    def check(self, asked: Any) -> Tensor:
        try:
            labels = torch.as_tensor(asked)
        except (TypeError, ValueError):
            kind = type(self.model).__name__
            raise ValueError(f"asked for {asked!r}; {kind} takes class numbers, 0 to {self.classes - 1}") from None
        if labels.ndim != 1 or labels.numel() == 0 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"labels are {tuple(labels.shape)} {labels.dtype}; pass one whole number a picture, shape (N,)"
            )
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}; the teacher knows 0 to {self.classes - 1}"
            )
        return labels.cpu().long()

    def words(self, asked: Asked) -> list[str]:
        names = self.card.get("labels") or {}
        return [names[label] if names else f"class {label}" for label in asked.tolist()]

    def rows(self, asked: Asked) -> Rows:
        return {"class_labels": asked.to(self.device)}

    def nothing(self) -> Rows:
        return {"class_labels": torch.full((1,), NULL_CLASS, device=self.device)}


class Captions(Conditions):
    """SD 1.5 and 2.1: a caption a picture, read by cross-attention."""

    latent = "sample"

    @property
    def unit(self) -> int:
        return 1

    def check(self, asked: Any) -> list[str]:
        if isinstance(asked, str) or not isinstance(asked, Sequence) or not all(isinstance(e, str) for e in asked):
            raise ValueError(f"captions are {type(asked).__name__}; pass a list of texts, one a picture")
        if not asked:
            raise ValueError("no captions; pass a list of texts, one a picture")
        return list(asked)

    def words(self, asked: Asked) -> list[str]:
        return list(asked)

    def rows(self, asked: Asked) -> Rows:
        states, _ = self.pipe.encode_prompt(list(asked), self.device, 1, False)
        return {"encoder_hidden_states": states}

    def nothing(self) -> Rows:
        return self.rows([""])


class SizedCaptions(Captions):
    """SDXL: two encoders, a pooled vector, and the size of the picture as six numbers."""

    def rows(self, asked: Asked) -> Rows:
        states, _, pooled, _ = self.pipe.encode_prompt(list(asked), None, self.device, 1, False)
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def nothing(self) -> Rows:
        empty = self.rows([""])
        zeros = self.pipe.config.force_zeros_for_empty_prompt
        return {name: torch.zeros_like(each) for name, each in empty.items()} if zeros else empty

    def arguments(self, noisy: Tensor, t: Tensor, rows: Rows) -> dict[str, Any]:
        rows = cast(rows, noisy.dtype)
        height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), 6)
        added = {"text_embeds": rows.pop("text_embeds"), "time_ids": sizes}
        return {self.latent: noisy, "timestep": t, **rows, "added_cond_kwargs": added}


class MaskedCaptions(Captions):
    """PixArt alpha and Sigma: T5's states with their mask; of the output the second half is a variance."""

    latent = "hidden_states"

    @property
    def unit(self) -> int:
        return self.model.config.patch_size

    def rows(self, asked: Asked) -> Rows:
        told = {"do_classifier_free_guidance": False, "device": self.device, "clean_caption": False}
        length = {"max_sequence_length": self.card["text_length"]} if "text_length" in self.card else {}
        states, mask, *_ = self.pipe.encode_prompt(list(asked), **told, **length)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def arguments(self, noisy: Tensor, t: Tensor, rows: Rows) -> dict[str, Any]:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.model.use_additional_conditions:  # the config says None where it follows from the size
            height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
            sizes["resolution"] = noisy.new_tensor([height, width]).expand(len(noisy), 2)
            sizes["aspect_ratio"] = noisy.new_tensor([height / width]).expand(len(noisy), 1)
        return {**super().arguments(noisy, t, rows), "added_cond_kwargs": sizes}


class FlowCaptions(Captions):
    """SD3 and SD3.5: captions inside self-attention and pooled, along the straight path."""

    latent = "hidden_states"

    @property
    def unit(self) -> int:
        return self.model.config.patch_size

    def rows(self, asked: Asked) -> Rows:
        told = {"device": self.device, "do_classifier_free_guidance": False}
        length = {"max_sequence_length": self.card["text_length"]} if "text_length" in self.card else {}
        states, _, pooled, _ = self.pipe.encode_prompt(list(asked), None, None, **told, **length)
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        tokens = like.shape[-2] * like.shape[-1] // self.unit**2
        scheduler.set_timesteps(steps, device=like.device, **shifted(scheduler, tokens))

    def unscaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor

    def scaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


class JointCaptions(FlowCaptions):
    """FLUX: captions read by T5 as tokens beside the picture's, and by CLIP as one vector."""

    def defaults(self) -> dict[str, Any]:
        """Without a guidance embedding (schnell) guidance is 1 by default, since real CFG needs a second forward."""
        return super().defaults() | ({} if self.guided else {"guidance": 1.0})

    @property
    def guided(self) -> bool:
        return self.model.config.guidance_embeds

    @property
    def channels(self) -> int:
        return self.model.config.in_channels // 4

    @property
    def unit(self) -> int:
        return 2

    @property
    def side(self) -> int:
        return self.pipe.default_sample_size

    def rows(self, asked: Asked) -> Rows:
        length = {"max_sequence_length": self.card["text_length"]} if "text_length" in self.card else {}
        states, pooled, _ = self.pipe.encode_prompt(list(asked), None, self.device, 1, **length)
        rows = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if self.guided:
            rows["guidance"] = pooled.new_full((len(pooled),), float(self.card.get("guidance", 3.5)))
        return rows

    def arguments(self, noisy: Tensor, t: Tensor, rows: Rows) -> dict[str, Any]:
        height, width = (side // 2 for side in noisy.shape[-2:])
        return {
            "hidden_states": packed(noisy),
            "timestep": t.to(noisy.dtype) / 1000,
            "img_ids": places(height, width, noisy.device),
            "txt_ids": torch.zeros(rows["encoder_hidden_states"].shape[1], 3, device=noisy.device),
            **cast(rows, noisy.dtype),
        }

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        return unpacked(output, like)

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        sigmas = [1 - step / steps for step in range(steps)]
        moved = shifted(scheduler, like.shape[-2] * like.shape[-1] // 4)
        scheduler.set_timesteps(sigmas=sigmas, device=like.device, **moved)


def shifted(scheduler: Any, tokens: int) -> dict[str, float]:
    """Return mu for timestep shifting that depends on the resolution, computed as in diffusers' pipelines."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return {}
    few, many = config.base_image_seq_len, config.max_image_seq_len
    return {"mu": config.base_shift + (config.max_shift - config.base_shift) * (tokens - few) / (many - few)}


def packed(latents: Tensor) -> Tensor:
    """Cells of 2 x 2 latents as FLUX's tokens: (batch, tokens, 4 channels)."""
    cells = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (batch, channels, rows, 2, columns, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def places(height: int, width: int, device: torch.device | str) -> Tensor:
    """(tokens, 3): 0, row, column. float32, since in bf16 those above 256 merge."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1], ids[..., 2] = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return ids.flatten(0, 1)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """FLUX's tokens (batch, tokens, 4 channels) as latents of the shape of `like`."""
    _, channels, height, width = like.shape
    cells = tokens.unflatten(1, (height // 2, width // 2)).unflatten(3, (channels, 2, 2))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


KINDS: dict[str, type[Conditions]] = {
    "DiTTransformer2DModel": Labels,
    "DiTPipeline": Labels,
    "UNet2DConditionModel": Captions,
    "PixArtTransformer2DModel": MaskedCaptions,
    "SD3Transformer2DModel": FlowCaptions,
    "FluxTransformer2DModel": JointCaptions,
}


def of(pipe: Any, card: Mapping[str, Any] | None = None) -> Conditions:
    """By the class of the pipeline's model, or its own."""
    model = _model(pipe)
    if model is None or getattr(pipe, "vae", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no denoising model and VAE; pass a Teacher or a pipeline")
    if getattr(model.config, "time_cond_proj_dim", None) is not None:
        raise ValueError(
            f"this {type(model).__name__} is told its guidance by timestep_cond, as latent consistency models are, and "
            "linattn's loop does not tell it: linearize it and draw with its own pipeline"
        )
    if getattr(model.config, "addition_embed_type", None) == "text_time":
        return SizedCaptions(pipe, card or {})
    for kind in (*type(model).__mro__, *type(pipe).__mro__):
        if kind.__name__ in KINDS:
            return KINDS[kind.__name__](pipe, card or {})
    raise ValueError(
        f"{type(pipe).__name__} holds a {type(model).__name__}, which linattn does not draw with; it draws with "
        f"{', '.join(KINDS)}"
    )


def _model(pipe: Any) -> nn.Module | None:
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def cast(rows: Rows, dtype: torch.dtype) -> Rows:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in rows.items()}


def cut(rows: Rows, part: slice) -> Rows:
    return {name: each[part] for name, each in rows.items()}


def joined(first: Rows, second: Rows) -> Rows:
    return {name: torch.cat([each, second[name]]) for name, each in first.items()}


def repeated(row: Rows, count: int) -> Rows:
    return {name: each.expand(count, *each.shape[1:]) for name, each in row.items()}


def dropped(rows: Rows, nothing: Rows, where: Tensor) -> Rows:
    """`rows`, of which those that `where` (batch,) marks become the empty one."""
    return {
        name: torch.where(where.to(each.device).view(-1, *[1] * (each.ndim - 1)), nothing[name], each)
        for name, each in rows.items()
    }
