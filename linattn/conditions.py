"""Turn labels or captions into arguments of a model's forward, and the model's output back into
latents.

- Prompts are a tensor of labels (DiT) or a list of captions, one a picture.
- Conditioning is a dictionary of tensors by the forward's own argument names, with one row a
  picture. Code that knows no family can therefore join, repeat and drop it. The pipeline's own
  `encode_prompt` encodes captions.
- Latents are (batch, channels, height, width) outside this module; for FLUX it packs 2 x 2 of them
  into a token.
- Times are the scheduler's, up to 1,000; FLUX's model takes a thousandth of them.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Asked = Tensor | Sequence[str]  # prompts: labels or captions
Rows = dict[str, Tensor]  # conditioning: tensors by argument name, one row a picture

NULL_CLASS = 1000  # DiTPipeline's constant, however few classes there are


class Conditions:
    """Hold the conditioning of one family; subclasses differ in their prompts and in how they call
    the model.
    """

    latent_argument = "hidden_states"  # the forward's argument for the noisy latents
    square = False  # whether the model draws squares only
    # whether the model takes the guidance as an argument, so that one forward is enough
    embeds_guidance = False

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
        """Return the number of latent positions that must divide a side."""
        return self.model.config.patch_size

    @property
    def side(self) -> int:
        """Return the side of the latents that the model was trained at."""
        return self.model.config.sample_size

    def defaults(self) -> dict[str, Any]:
        """Return the default steps and guidance of the pipeline's own call."""
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        return {
            "steps": parameters["num_inference_steps"].default,
            "guidance": parameters["guidance_scale"].default,
        }

    def check(self, prompts: Any) -> Asked:
        """Return the prompts in the form that `rows` takes, or raise a ValueError."""
        raise NotImplementedError

    def words(self, prompts: Asked) -> list[str]:
        """Return the prompts as text for a reader."""
        raise NotImplementedError

    def rows(self, prompts: Asked) -> Rows:
        """Encode the prompts as conditioning."""
        raise NotImplementedError

    def nothing(self) -> Rows:
        """Return the conditioning of one empty prompt, which guidance leads away from and drops put
        in.
        """
        raise NotImplementedError

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Rows) -> dict[str, Any]:
        """Return the arguments of the model's forward."""
        return {self.latent_argument: noisy, "timestep": t, **cast(conditioning, noisy.dtype)}

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        """Return the model's output as (batch, channels or twice as many, height, width)."""
        return output

    def call(self, model: nn.Module, noisy: Tensor, t: Tensor, conditioning: Rows) -> Tensor:
        """Run the model on noisy latents, and return its output as latents."""
        kwargs = self.arguments(noisy, t, conditioning)
        output = model(kwargs.pop(self.latent_argument), **kwargs, return_dict=False)[0]
        return self.latents(output, noisy)

    @torch.no_grad()
    def example(
        self, height: int, width: int, prompts: Asked, noise: float = 0.5
    ) -> dict[str, Any]:
        """Return arguments of a forward at one noise level, for latents of this size; costs are
        counted on them.
        """
        weight = next(self.model.parameters())
        noisy = weight.new_zeros(len(prompts), self.channels, height, width)
        t = torch.full((len(prompts),), min(999, round(noise * 1000)), device=weight.device)
        return self.arguments(noisy, t, self.rows(prompts))

    @property
    def text_encoders(self) -> list[nn.Module]:
        """Return the pipeline's text encoders."""
        components = self.pipe.components.items()
        return [module for name, module in components if name.startswith("text_encoder") and module]

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        """Set the scheduler's times for latents of this shape and device."""
        scheduler.set_timesteps(steps, device=like.device)

    def unscaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        """Return latents at the decoder's scale.

        DiT's, SD's and PixArt's pipelines have a scaling factor and no shift.
        """
        return latents / vae.config.scaling_factor

    def scaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        """Return the encoder's latents at the scale of the model."""
        return latents * vae.config.scaling_factor


class Labels(Conditions):
    """Condition DiT on one class label a picture."""

    square = True

    @property
    def classes(self) -> int:
        """Return the number of classes: by the card's labels or classes, or else by the model's
        config.
        """
        classes = (
            self.card.get("labels")
            or self.card.get("classes")
            or self.model.config.num_embeds_ada_norm
        )
        return classes if isinstance(classes, int) else len(classes)

    def check(self, prompts: Any) -> Tensor:
        try:
            labels = torch.as_tensor(prompts)
        except (TypeError, ValueError):
            model = type(self.model).__name__
            raise ValueError(
                f"prompts are {prompts!r}; {model} takes class numbers, 0 to {self.classes - 1}"
            ) from None
        if (
            labels.ndim != 1
            or labels.numel() == 0
            or labels.is_floating_point()
            or labels.dtype == torch.bool
        ):
            raise ValueError(
                f"labels are {tuple(labels.shape)} {labels.dtype}; pass one whole number a "
                "picture, shape (N,)"
            )
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}; the teacher knows 0 to "
                f"{self.classes - 1}"
            )
        return labels.cpu().long()

    def words(self, prompts: Asked) -> list[str]:
        names = self.card.get("labels") or {}
        return [names[label] if names else f"class {label}" for label in prompts.tolist()]

    def rows(self, prompts: Asked) -> Rows:
        return {"class_labels": prompts.to(self.device)}

    def nothing(self) -> Rows:
        return {"class_labels": torch.full((1,), NULL_CLASS, device=self.device)}


class Captions(Conditions):
    """Condition SD 1.5 and 2.1 on one caption a picture, through cross-attention."""

    latent_argument = "sample"

    @property
    def unit(self) -> int:
        return 1

    def check(self, prompts: Any) -> list[str]:
        is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        if not is_list or not all(isinstance(caption, str) for caption in prompts):
            raise ValueError(
                f"captions are {type(prompts).__name__}; pass a list of texts, one a picture"
            )
        if not prompts:
            raise ValueError("no captions; pass a list of texts, one a picture")
        return list(prompts)

    def words(self, prompts: Asked) -> list[str]:
        return list(prompts)

    def rows(self, prompts: Asked) -> Rows:
        states, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, False)
        return {"encoder_hidden_states": states}

    def nothing(self) -> Rows:
        return self.rows([""])

    def length_kwargs(self) -> dict[str, Any]:
        """Return the length of the text for `encode_prompt`, where the card names one."""
        return (
            {"max_sequence_length": self.card["text_length"]} if "text_length" in self.card else {}
        )


class SizedCaptions(Captions):
    """Condition SDXL on two encoders' states, a pooled vector, and the size of the picture as six
    numbers.
    """

    def rows(self, prompts: Asked) -> Rows:
        states, _, pooled, _ = self.pipe.encode_prompt(list(prompts), None, self.device, 1, False)
        return {"encoder_hidden_states": states, "text_embeds": pooled}

    def nothing(self) -> Rows:
        empty = self.rows([""])
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return empty
        return {name: torch.zeros_like(tensor) for name, tensor in empty.items()}

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Rows) -> dict[str, Any]:
        kwargs = cast(conditioning, noisy.dtype)
        height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), 6)
        added = {"text_embeds": kwargs.pop("text_embeds"), "time_ids": sizes}
        return {self.latent_argument: noisy, "timestep": t, **kwargs, "added_cond_kwargs": added}


class MaskedCaptions(Captions):
    """Condition PixArt alpha and Sigma on T5's states and their mask. The second half of the output
    is a variance.
    """

    latent_argument = "hidden_states"

    @property
    def unit(self) -> int:
        return self.model.config.patch_size

    def rows(self, prompts: Asked) -> Rows:
        kwargs = {
            "do_classifier_free_guidance": False,
            "device": self.device,
            "clean_caption": False,
        }
        states, mask, *_ = self.pipe.encode_prompt(list(prompts), **kwargs, **self.length_kwargs())
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Rows) -> dict[str, Any]:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        # where the config says None, the model decides by its size
        if self.model.use_additional_conditions:
            height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
            sizes["resolution"] = noisy.new_tensor([height, width]).expand(len(noisy), 2)
            sizes["aspect_ratio"] = noisy.new_tensor([height / width]).expand(len(noisy), 1)
        return {**super().arguments(noisy, t, conditioning), "added_cond_kwargs": sizes}


class FlowCaptions(Captions):
    """Condition SD3 and SD3.5, flow models, on captions as tokens of the self-attention and as a
    pooled vector.
    """

    latent_argument = "hidden_states"

    @property
    def unit(self) -> int:
        return self.model.config.patch_size

    def rows(self, prompts: Asked) -> Rows:
        kwargs = {"device": self.device, "do_classifier_free_guidance": False}
        states, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, None, **kwargs, **self.length_kwargs()
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        tokens = like.shape[-2] * like.shape[-1] // self.unit**2
        scheduler.set_timesteps(steps, device=like.device, **shifted(scheduler, tokens))

    def unscaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        return latents / vae.config.scaling_factor + vae.config.shift_factor

    def scaled(self, latents: Tensor, vae: nn.Module) -> Tensor:
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


class JointCaptions(FlowCaptions):
    """Condition FLUX on captions: T5's tokens stand beside the picture's, and CLIP gives one
    vector.
    """

    def defaults(self) -> dict[str, Any]:
        """Return the pipeline's default steps and guidance.

        Without a guidance embedding (schnell) the default guidance is 1, because real CFG needs a
        second forward.
        """
        defaults = super().defaults()
        return defaults if self.embeds_guidance else defaults | {"guidance": 1.0}

    @property
    def embeds_guidance(self) -> bool:
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

    def rows(self, prompts: Asked) -> Rows:
        states, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, self.device, 1, **self.length_kwargs()
        )
        conditioning = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if self.embeds_guidance:
            conditioning["guidance"] = pooled.new_full(
                (len(pooled),), float(self.card.get("guidance", 3.5))
            )
        return conditioning

    def arguments(self, noisy: Tensor, t: Tensor, conditioning: Rows) -> dict[str, Any]:
        height, width = (side // 2 for side in noisy.shape[-2:])
        return {
            "hidden_states": packed(noisy),
            "timestep": t.to(noisy.dtype) / 1000,
            "img_ids": places(height, width, noisy.device),
            "txt_ids": torch.zeros(
                conditioning["encoder_hidden_states"].shape[1], 3, device=noisy.device
            ),
            **cast(conditioning, noisy.dtype),
        }

    def latents(self, output: Tensor, like: Tensor) -> Tensor:
        return unpacked(output, like)

    def set_times(self, scheduler: Any, steps: int, like: Tensor) -> None:
        sigmas = [1 - step / steps for step in range(steps)]
        shift = shifted(scheduler, like.shape[-2] * like.shape[-1] // 4)
        scheduler.set_timesteps(sigmas=sigmas, device=like.device, **shift)


def shifted(scheduler: Any, tokens: int) -> dict[str, float]:
    """Return mu for timestep shifting that depends on the resolution, computed as in diffusers'
    pipelines.
    """
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return {}
    base, most = config.base_image_seq_len, config.max_image_seq_len
    return {
        "mu": config.base_shift
        + (config.max_shift - config.base_shift) * (tokens - base) / (most - base)
    }


def packed(latents: Tensor) -> Tensor:
    """Pack cells of 2 x 2 latents into FLUX's tokens, (batch, tokens, 4 channels)."""
    # (batch, channels, rows, 2, columns, 2)
    cells = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def places(height: int, width: int, device: torch.device | str) -> Tensor:
    """Return the position of every token as (0, row, column), shape (tokens, 3).

    The positions are float32, because in bf16 numbers above 256 merge.
    """
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1], ids[..., 2] = (
        torch.arange(height, device=device)[:, None],
        torch.arange(width, device=device),
    )
    return ids.flatten(0, 1)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """Unpack FLUX's tokens (batch, tokens, 4 channels) into latents of the shape of `like`."""
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
    """Return the conditions of a pipeline, chosen by the class of its model or by its own class."""
    model = _model(pipe)
    if model is None or getattr(pipe, "vae", None) is None:
        raise ValueError(
            f"{type(pipe).__name__} has no denoising model and VAE; pass a Teacher or a pipeline"
        )
    if getattr(model.config, "time_cond_proj_dim", None) is not None:
        raise ValueError(
            f"this {type(model).__name__} is conditioned on its guidance by timestep_cond, "
            "as latent consistency models are, and linattn's loop does not pass it: "
            "linearize the model and draw with its own pipeline"
        )
    if getattr(model.config, "addition_embed_type", None) == "text_time":
        return SizedCaptions(pipe, card or {})
    for ancestor in (*type(model).__mro__, *type(pipe).__mro__):
        if ancestor.__name__ in KINDS:
            return KINDS[ancestor.__name__](pipe, card or {})
    raise ValueError(
        f"{type(pipe).__name__} holds a {type(model).__name__}, which linattn does not draw with; "
        "it draws with "
        f"{', '.join(KINDS)}"
    )


def _model(pipe: Any) -> nn.Module | None:
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def cast(conditioning: Rows, dtype: torch.dtype) -> Rows:
    """Cast the floating-point tensors of a conditioning."""
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in conditioning.items()
    }


def joined(first: Rows, second: Rows) -> Rows:
    """Concatenate two conditionings along the batch."""
    return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}


def repeated(single: Rows, count: int) -> Rows:
    """Repeat a conditioning of one row `count` times."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in single.items()}


def dropped(conditioning: Rows, empty: Rows, mask: Tensor) -> Rows:
    """Replace the rows that `mask` (batch,) marks by the empty conditioning."""
    replaced = {}
    for name, tensor in conditioning.items():
        broadcast = mask.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        replaced[name] = torch.where(broadcast, empty[name], tensor)
    return replaced
