"""Captions as prompts: what all families that read text share."""

from collections.abc import Sequence
from typing import Any

from linattn.families.conditions import Conditioning, Conditions, Prompts
from linattn.names import short


def _is_unicode(text: str) -> bool:
    """Say whether a text can be written: of half a surrogate pair a tokenizer makes nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Captions(Conditions):
    """Condition a model on one caption a picture, which its pipeline encodes."""

    def check(self, prompts: Any) -> list[str]:
        is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        if not is_list or not all(isinstance(caption, str) for caption in prompts):
            raise ValueError(f"captions are {short(prompts)}; pass a list of texts, one a picture")
        if lone := [caption for caption in prompts if not _is_unicode(caption)]:
            raise ValueError(f"caption {short(lone[0])} holds half a character; write it in UTF-8")
        if not prompts:
            raise ValueError("no captions; pass a list of texts, one a picture")
        return list(prompts)

    def words(self, prompts: Prompts) -> list[str]:
        return self.check(prompts)

    def nothing(self) -> Conditioning:
        return self.encode([""])

    def length_kwargs(self) -> dict[str, Any]:
        """Return the length of the text for `encode_prompt`, where the card names one."""
        if "text_length" not in self.card:
            return {}
        return {"max_sequence_length": self.card["text_length"]}
