"""Encode prompts while text encoders and VAE are off the device: FLUX.1's T5 takes 10 GB there.

- Encoded prompts are kept on the CPU, because samples repeat them: a list of 500 is 2.1 GB for
  FLUX.1 (512 x 4096 in bfloat16 each) and .06 GB for SD 1.5.
- The encoders come to the device for prompts that are new, all of a step at once. Their weights
  stay on the CPU beside, so that leaving costs nothing; coming takes .4 s of PCIe for FLUX.1, where
  a step of 32 pictures takes 27 s. Encoding on the CPU would take 5 s a prompt.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from linattn.conditions import Conditioning, Conditions, Prompts, joined

MOST = 4 * 2**30  # bytes of prompts that are kept: 970 of FLUX.1, 35,000 of SD 1.5
AT_ONCE = 8  # prompts that are encoded together


class Kept:
    """Encode prompts by encoders that lie on the CPU, and keep what they gave.

    Args:
        conditions: of the teacher, whose model is on the device.
        most: bytes to keep; the prompts of one step are kept whatever they take.
    """

    def __init__(self, conditions: Conditions, most: int = MOST):
        self.conditions, self.most = conditions, most
        self.modules = away(conditions)
        self.encoded: OrderedDict[str, Conditioning] = OrderedDict()
        self.empty: Conditioning | None = None

    def prepare(self, prompts: Prompts) -> None:
        """Encode the captions that are new, in one visit of the encoders, for `encode` to find."""
        if isinstance(prompts, Tensor):
            return
        for caption in prompts:
            if caption in self.encoded:
                self.encoded.move_to_end(caption)
        missing = [caption for caption in dict.fromkeys(prompts) if caption not in self.encoded]
        if missing:
            self._read(missing)
            self._forget(len(set(prompts)))

    def encode(self, prompts: Prompts) -> Conditioning:
        """Return the conditioning on the device; labels need no encoder."""
        if isinstance(prompts, Tensor):
            return self.conditions.encode(prompts)
        self.prepare(prompts)
        return self._joined([self.encoded[caption] for caption in prompts])

    def nothing(self) -> Conditioning:
        """Return the conditioning of the empty prompt on the device."""
        if self.empty is None:
            with self.present():
                self.empty = on(self.conditions.nothing(), "cpu")
        return on(self.empty, self.conditions.device)

    @contextmanager
    def present(self) -> Iterator[None]:
        """Bring encoders and VAE to the device meanwhile; going back copies nothing."""
        tensors = list(tensors_of(self.modules))
        homes = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = brought(tensor.data, self.conditions.device)
            yield
        finally:
            for tensor, home in zip(tensors, homes, strict=True):
                tensor.data = home

    @torch.no_grad()
    def _read(self, captions: Sequence[str]) -> None:
        with self.present():
            for start in range(0, len(captions), AT_ONCE):
                chunk = captions[start : start + AT_ONCE]
                encoded = on(self.conditions.encode(chunk), "cpu")
                for number, caption in enumerate(chunk):
                    picture = slice(number, number + 1)
                    entry = {name: tensor[picture].clone() for name, tensor in encoded.items()}
                    self.encoded[caption] = entry

    def _forget(self, needed: int) -> None:
        """Drop the captions that were used longest ago, beyond the bytes to keep."""
        size = sum(map(bytes_of, self.encoded.values()))
        while size > self.most and len(self.encoded) > needed:
            _, oldest = self.encoded.popitem(last=False)
            size -= bytes_of(oldest)

    def _joined(self, entries: Sequence[Conditioning]) -> Conditioning:
        return on(functools.reduce(joined, entries), self.conditions.device)


@contextmanager
def leaving(kept: Kept) -> Iterator[None]:
    """Let encoders and VAE be on the CPU meanwhile, and bring them back to where they were."""
    devices = [next(module.parameters()).device for module in kept.modules]
    for module in kept.modules:
        module.to("cpu")
    try:
        yield
    finally:
        for module, device in zip(kept.modules, devices, strict=True):
            module.to(device)


def away(conditions: Conditions) -> list[nn.Module]:
    """Return what training does without: the text encoders but for new prompts, and the VAE."""
    return [*conditions.text_encoders, conditions.pipe.vae]


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device."""
    return tensor.to(device)


def on(conditioning: Conditioning, device: torch.device | str) -> Conditioning:
    """Return the conditioning on a device."""
    return {name: brought(tensor, torch.device(device)) for name, tensor in conditioning.items()}


def bytes_of(conditioning: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in conditioning.values())
