"""What an encoder-decoder reads, and the tokens that it is given before it writes."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.data import (
    HEARD,
    Reader,
    Sources,
    Tokenizer,
    input_of,
    load_source_tokenizer,
    prompt_tokens,
)
from bigmodel_cli.generation.batches import BATCH
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Generator

FRAMES = 48_000
"""Most frames of sound at once: 16 recordings of half a minute."""


def rows_at_once(loaded: Loaded) -> int:
    """How many sources are read at once: few where each has many frames."""
    if loaded.info.frame_width is None:
        return BATCH
    return max(1, min(BATCH, FRAMES // (loaded.info.context or 1)))


def source_reader(loaded: Loaded, *, empty: bool = False) -> Reader:
    """What reads the sources of an encoder-decoder; `empty` allows texts without a token."""
    kind = input_of(loaded.info)
    if kind.in_files:
        return kind.reader(loaded.spec.data, loaded.assets)
    own = load_source_tokenizer(loaded.assets)
    return Sources(own, loaded.info.context or loaded.model.max_len, empty)


def target_begins(loaded: Loaded, tokenizer: Tokenizer) -> list[int]:
    """The tokens that each target begins with: its start, and the data's prompt."""
    assert tokenizer.target_start is not None
    return [tokenizer.target_start, *prompt_tokens(tokenizer, loaded.spec.data.target_prompt())]


def begun(
    model: Generator,
    first: list[int],
    count: int,
    languages: Sequence[int],
    device: torch.device,
) -> Tensor:
    """(count, P) tokens that targets begin with, the language of each as the model hears it.

    That is the likeliest of the languages' tokens after the start (Radford et al. 2022).
    """
    start = torch.tensor([first], device=device).repeat(count, 1)
    heard = start == HEARD
    if heard.any():
        with torch.no_grad():
            logits = model(start[:, :1])[:, -1].float()
        known = torch.tensor(languages, device=device)
        start[heard] = known[logits[:, known].argmax(-1)].repeat_interleave(heard[0].sum())
    return start
