"""Build tokenizers and small text encoders for the world's words, without a download.

- Every word of a caption is one token of either tokenizer. Other words fall back to letters (CLIP)
  or to the unknown token (T5).
- Encoders start from random weights here and are trained with the model that reads them
  (pretraining).
"""

import functools
import itertools
import string
from collections import Counter

from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from linattn.world import drawing

LENGTH = 16  # tokens of a caption: at most 13 words, with a token to begin and one to end
BEGIN, END, LAST = "<|startoftext|>", "<|endoftext|>", "</w>"


@functools.cache
def words() -> tuple[str, ...]:
    """Return all words that a caption can hold."""
    relation_words = " ".join(drawing.RELATIONS).split()
    names = [*drawing.COLOURS, *drawing.SHAPES, *drawing.TONES, *drawing.BACKGROUNDS]
    return tuple(dict.fromkeys(["a", "on", "small", "large", *relation_words, *names]))


@functools.cache
def _clip_vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Learn the vocabulary and the byte-pair merges from the words alone.

    The commonest pair is merged first; ties are broken by the alphabet. The library's trainer is
    not used because it breaks ties by hashes and so gives another vocabulary in every process.
    Merges written by hand would split words, since the lowest merge applies anywhere.
    """
    token_lists = [[*word[:-1], word[-1] + LAST] for word in words()]
    merges: list[tuple[str, str]] = []
    while counts := _count_pairs(token_lists):
        commonest = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(commonest)
        token_lists = [_merge_pair(tokens, commonest) for tokens in token_lists]
    letters = [letter for letter in string.printable if not letter.isspace()]
    vocabulary = [
        BEGIN,
        END,
        *letters,
        *(letter + LAST for letter in letters),
        *(a + b for a, b in merges),
    ]
    return {token: number for number, token in enumerate(vocabulary)}, tuple(merges)


def _count_pairs(token_lists: list[list[str]]) -> Counter[tuple[str, str]]:
    """Count the pairs of neighbouring tokens over all words."""
    counts: Counter[tuple[str, str]] = Counter()
    for tokens in token_lists:
        counts.update(itertools.pairwise(tokens))
    return counts


def _merge_pair(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Join a pair of neighbouring tokens into one token wherever it occurs."""
    merged: list[str] = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def clip_tokenizer() -> CLIPTokenizer:
    """Build CLIP's tokenizer with the world's vocabulary."""
    vocab, merges = _clip_vocabulary()
    special = {"unk_token": END, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=LENGTH, **special)


def clip_encoder(width: int, layers: int, heads: int) -> CLIPTextModel:
    """Build a CLIP text encoder with random weights.

    The ids of its special tokens are those of the world's vocabulary. With CLIP's ids the pooled
    vector would be the same for every prompt.
    """
    config = CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()[0]),
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
    """Return CLIP's token ids of the captions: (captions, LENGTH)."""
    return clip_tokenizer()(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


def t5_tokenizer() -> T5Tokenizer:
    """Build T5's tokenizer with the world's words as pieces."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*special, "\u2581", *("\u2581" + word for word in words())]
    return T5Tokenizer(
        vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=LENGTH
    )


def t5_encoder(width: int, layers: int, heads: int) -> T5EncoderModel:
    """Build a T5 encoder with random weights."""
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
    """Return T5's token ids of the captions: (captions, LENGTH)."""
    return t5_tokenizer()(
        captions, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
