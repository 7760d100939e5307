"""Tokenizers that read any text letter by letter, for text encoders without a vocabulary at hand.

The numbers of the special tokens are those of the published vocabularies, since the encoders find
the end of a prompt by them.
"""

import re
from collections.abc import Iterable

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

CLIP_LENGTH, T5_LENGTH = 77, 512  # tokens that the published pipelines pad to
CLIP_BEGIN, CLIP_END = 49406, 49407
BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

# What the pipeline of Qwen-Image writes around a prompt: 34 tokens before it, which it then drops.
TEMPLATE = (
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:user\nassistant\n"
)
FIRST_WORDS = ("system", "Describe", "user", "assistant")  # which no space goes before
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPACE = "\u0120"  # among the bytes of a vocabulary


def _letters() -> list[str]:
    """Return the printable ASCII letters, in lower case as CLIP reads them."""
    letters = [chr(code) for code in range(33, 127)]
    return [letter for letter in letters if letter == letter.lower()]


def clip() -> CLIPTokenizer:
    """Build CLIP's tokenizer with a token for each letter and each last letter of a word."""
    pieces = [piece for letter in _letters() for piece in (letter, letter + WORD_END)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    vocab |= {BEGIN: CLIP_BEGIN, END: CLIP_END}
    special = {"unk_token": END, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=CLIP_LENGTH, **special)


def t5() -> T5Tokenizer:
    """Build T5's tokenizer with a token for each letter."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(code) for code in range(33, 127))]
    vocab = [(piece, 0.0) for piece in pieces]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=T5_LENGTH)


def qwen(words: Iterable[str] = ()) -> Qwen2Tokenizer:
    """Build Qwen's tokenizer with a token for each word of the template, and one for each byte.

    Args:
        words: further words that are a token each after a space.
    """
    merges = {}
    for word in (*re.findall(r"\w+", TEMPLATE), *words):
        for end in range(len(word)):
            merges[f"{SPACE}{word[:end]}", word[end]] = None
    pieces = [*MARKS, *sorted(ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Qwen2Tokenizer(vocab, list(merges))
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in FIRST_WORDS])
    return tokenizer
