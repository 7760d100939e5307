"""The world's words for text encoders: tokenizers and small encoders built without a download.

- Every word of a caption is one token of either tokenizer; what is no word of the world falls back to letters (CLIP) or
  to the unknown token (T5).
- Encoders are drawn at random here and trained with the model that reads them (pretraining).
"""

import functools
import itertools
import string
from collections import Counter

from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from linattn.world import drawing

LENGTH = 16  # tokens of a caption: 13 words at most, begin and end
BEGIN, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


@functools.cache
def words() -> tuple[str, ...]:
    """All that a caption can be made of."""
    relations = [word for relation in drawing.RELATIONS for word in relation.split()]
    kinds = [*drawing.COLOURS, *drawing.SHAPES, *drawing.TONES, *drawing.BACKGROUNDS]
    return tuple(dict.fromkeys(["a", "on", "small", "large", *relations, *kinds]))


@functools.cache
def _pairs() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of byte pairs learned from the words alone, the commonest first, ties by the alphabet.

    (The library's own trainer breaks ties by hashes: another vocabulary in every process. Merges written by hand break
    words, since the lowest applies anywhere.)
    """
    spelled, merges = [[*word[:-1], word[-1] + LAST] for word in words()], []
    while counts := Counter(pair for parts in spelled for pair in itertools.pairwise(parts)):
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        spelled = [_merged(parts, merges[-1]) for parts in spelled]
    letters = [letter for letter in string.printable if not letter.isspace()]
    known = [BEGIN, END, *letters, *(letter + LAST for letter in letters), *(a + b for a, b in merges)]
    return {token: number for number, token in enumerate(known)}, tuple(merges)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def clip_tokenizer() -> CLIPTokenizer:
    vocab, merges = _pairs()
    names = {"unk_token": END, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=LENGTH, **names)


def clip_encoder(width: int, layers: int, heads: int) -> CLIPTextModel:
    """Ids are the vocabulary's own: with CLIP's the pooled vector would be the same for every prompt."""
    config = CLIPTextConfig(
        vocab_size=len(_pairs()[0]),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def clip_ids(captions: list[str]) -> Tensor:
    """(captions, LENGTH)"""
    return clip_tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def t5_tokenizer() -> T5Tokenizer:
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*special, "\u2581", *("\u2581" + word for word in words())]
    return T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=LENGTH)


def t5_encoder(width: int, layers: int, heads: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def t5_ids(captions: list[str]) -> Tensor:
    """(captions, LENGTH)"""
    return t5_tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
