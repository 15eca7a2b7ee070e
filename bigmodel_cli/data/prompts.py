"""From a user's text to what a decoder continues: prompts, questions and conversations."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.data.base import AnyDataOptions
from bigmodel_cli.data.chat.messages import asked
from bigmodel_cli.data.chat.turns import Turns
from bigmodel_cli.data.inputs import pieces_of
from bigmodel_cli.data.text.cleaning import checked, clean, without_bom
from bigmodel_cli.data.text.split import encode, marks
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import Tensor, torch


class LeftPadded:
    """Rows of tokens for a decoder to continue: {"tokens": (B, T), "real": (B, T)}."""

    def batch(self, contents: Sequence[list[int]]) -> dict[str, Tensor]:
        """Padded on the left."""
        longest = max(map(len, contents))
        real = torch.tensor(
            [[False] * (longest - len(row)) + [True] * len(row) for row in contents]
        )
        return {
            "tokens": torch.tensor([[row[0]] * (longest - len(row)) + row for row in contents]),
            "real": real,
        }


class Dialogues(LeftPadded):
    """Questions, or conversations as JSON, as their template writes them; what is too long is
    refused.
    """

    def __init__(self, turns: Turns, limit: int) -> None:
        self.turns, self.limit = turns, limit
        self.most = f"{limit} tokens"

    def read(self, given: str, place: str) -> tuple[list[int], bool]:
        """The tokens up to where the answer begins."""
        tokens = self.turns.prompt(asked(without_bom(checked(given, place)), place), place)
        if len(tokens) >= self.limit:
            raise DataError(
                f"{place}: the conversation has {len(tokens):,} tokens, and the model takes"
                f" {self.limit:,} with the answer"
            )
        return tokens, False


class Prompts(LeftPadded):
    """Prompts of a decoder, padded on the left; a prompt that is too long loses its start.

    Where each training text begins with a start token, as the rows of a table, isolated documents
    and the texts of some published models do, a prompt does too, and may be empty; other windows
    of running text begin anywhere.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, options: AnyDataOptions) -> None:
        self.tokenizer, self.limit, self.sides = tokenizer, limit, options.text_columns()
        begins = self.sides or options.isolates() or tokenizer.begins
        self.begin = [marks(tokenizer)[0]] if begins else []
        self.most = f"{limit} tokens, the last ones"

    def read(self, given: str, place: str) -> tuple[list[int], bool]:
        """The tokens, after the start token where there is one."""
        tokens = self.whole(given, place)
        return tokens[-self.limit :], len(tokens) > self.limit

    def windows(self, given: str, place: str) -> list[list[int]]:
        """The tokens in as many pieces as the model's limit asks for, the start in the first."""
        return pieces_of(self.whole(given, place), self.limit)

    def whole(self, given: str, place: str) -> list[int]:
        """All tokens, however many the model takes."""
        given, tokens = without_bom(checked(given, place)), [*self.begin]
        if not self.sides:
            tokens += self.tokens(given, place)
        else:
            *whole, last = given.split("\t", self.sides - 1)
            for side in whole:
                tokens += [*self.tokens(clean(side), place), marks(self.tokenizer)[1]]
            tokens += self.tokens(last.lstrip(), place)  # a blank at its end is one within the row
        if not tokens:
            raise DataError(f"{place}: the prompt is empty; give at least one character")
        return tokens

    def tokens(self, text: str, place: str) -> list[int]:
        """The tokens of a text as plain numbers."""
        return [int(token) for token in encode(self.tokenizer, text, place)]
