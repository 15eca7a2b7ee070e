"""The text that tokens add to a prompt's, at once or as they come."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.data import Tokenizer

NEAR = 32
"""Preceding tokens that may change a token's text: the beginning of its word."""


def added_text(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens add to a prompt's text.

    Some tokenizers decode a space only between words, or join the pieces of a word only after its
    beginning (Metaspace, WordPiece): the text of a token depends on those before it.
    """
    before = tokenizer.decode(prompt) if prompt else ""
    whole = tokenizer.decode([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens)


class Pieces:
    """A continuation as its tokens come, in pieces of whole characters."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer, self.before = tokenizer, list(prompt)
        self.waiting: list[int] = []

    def add(self, token: int) -> str:
        """The piece that a token completes; "" while a character is incomplete."""
        self.waiting.append(token)
        piece = added_text(self.tokenizer, self.before, self.waiting)
        if piece.endswith("\ufffd"):
            return ""
        # A token's text depends only on those just before it.
        self.before, self.waiting = [*self.before, *self.waiting][-NEAR:], []
        return piece
