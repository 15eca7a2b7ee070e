"""Random tokens that come twice: what a model that copies can foretell, and no other."""

from __future__ import annotations

from bigmodel_cli.data import Prompts, Tokenizer, load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded

LENGTH = 64
"""Tokens that are drawn and then stand there a second time; fewer where the context is short."""


def repeated_tokens(loaded: Loaded, seed: int = 0) -> Tensor:
    """(1, 2 n) tokens drawn uniformly from the vocabulary without special ones, and the same again,
    after the token that each text begins with, if there is one.

    Raises `SpecError` for a model that does not continue texts, or one whose context is too short.
    """
    if not loaded.model.can_generate or loaded.model.is_encoder_decoder:
        raise SpecError(
            "--over: without an INPUT repeated random tokens are read, by models that continue"
            " texts; give an INPUT"
        )
    tokenizer = load_tokenizer(loaded.assets)
    begin = Prompts(tokenizer, loaded.model.limit, loaded.spec.data).begin
    most = min(loaded.model.limit, loaded.info.context or 2 * LENGTH)
    count = min(LENGTH, (most - len(begin)) // 2)
    plain = plain_tokens(tokenizer)
    if count < 2 or len(plain) < 2:
        raise SpecError("--over: too few tokens, or too short a context, to repeat; give an INPUT")
    drawn = torch.Generator().manual_seed(seed)
    row = plain[torch.randint(len(plain), (count,), generator=drawn)]
    return torch.cat((torch.tensor(begin, dtype=torch.int64), row, row))[None]


def plain_tokens(tokenizer: Tokenizer) -> Tensor:
    """The tokens that are neither marks nor never written."""
    special = {*tokenizer.stops, *tokenizer.never}
    special |= {t for t in (tokenizer.start_of_text, tokenizer.end_of_text) if t is not None}
    return torch.tensor([t for t in range(tokenizer.vocab_size) if t not in special])


def repeats_of(tokens: Tensor) -> Tensor:
    """(T,) -> (T - 1,)   which of the tokens from the second on follow the one before them as they
    did earlier: those that can be foretold by copying.
    """
    pairs = torch.stack((tokens[:-1], tokens[1:]), 1)
    _, which = pairs.unique(dim=0, return_inverse=True)
    first = torch.full((len(which),), len(which)).scatter_reduce(
        0, which, torch.arange(len(which)), "amin"
    )
    return torch.arange(len(which)) > first[which]
