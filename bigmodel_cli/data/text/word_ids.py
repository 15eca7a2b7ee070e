"""Which word each token belongs to: needed for whole-word masking, and known only from the
tokenizer.
"""

from __future__ import annotations

import unicodedata

import numpy as np

from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.lazy import Tensor, torch

NO_WORD = -1
"""The word of padding, and of special tokens such as the end of a text."""


class Words:
    """(B, T) tokens -> (B, T) int64 the number of each token's word in its row, from 0; -1 for
    padding and special tokens.

    A word is a run of letters, their marks and digits, in one or several tokens; every other
    character is a word of its own. A character that a token contains a part of counts as a letter.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.table = torch.from_numpy(token_word_flags(tokenizer))

    def __call__(self, tokens: Tensor) -> Tensor:
        """Number the words; a row that begins in the middle of a word counts that as its first."""
        if self.table.device != tokens.device:
            self.table = self.table.to(tokens.device)
        mark, before, after = self.table[tokens.clamp(min=0)].unbind(-1)  # (B, T) each
        outside = mark | (tokens < 0)
        begins = ~outside
        begins[:, 1:] &= ~(before[:, 1:] & after[:, :-1])
        return (begins.cumsum(1) - 1).masked_fill(outside, NO_WORD)


def token_word_flags(tokenizer: Tokenizer) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(V, 3) bool, for each token: is it special; can it continue the previous word; can the next
    token continue it.

    Each token is decoded after a letter, since some tokenizers write a word's space only between
    words.
    """
    table = np.zeros((tokenizer.vocab_size, 3), np.bool_)
    letter = next(
        (t for t in range(tokenizer.vocab_size) if tokenizer.decode([t]).strip().isalnum()), None
    )
    known = tokenizer.decode([letter]) if letter is not None else ""
    for token in range(tokenizer.vocab_size):
        text = (
            tokenizer.decode([letter, token])[len(known) :]
            if letter is not None
            else tokenizer.decode([token])
        )
        table[token] = (False, _joins(text[0]), _joins(text[-1])) if text else (True, False, False)
    return table


def _joins(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character == "\ufffd"
