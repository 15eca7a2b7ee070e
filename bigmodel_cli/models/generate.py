"""Generation with a cache: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigmodel_cli.lazy import Tensor, torch


def generate(
    model: Any,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    real: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the next token (B,) of each sequence of `prompt` (B, T), up to `max_new_tokens` times.

    `temperature` 0 is greedy. Ends when every sequence has produced `stop`. Where the model's longest sequence is reached, the
    later half is read again and generation goes on from there; a prompt longer than that is cut from the left. `real` (B, T) is
    False where a shorter prompt is padded, on its left.
    """
    model.eval()
    tokens = prompt[:, -model.limit :]
    segments = None if real is None else real[:, -model.limit :].long()  # (B, T): padding is a segment of its own
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    cache: Any = None
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            if cache is None or tokens.shape[1] > model.limit:
                if tokens.shape[1] > model.limit:
                    tokens = tokens[:, -(model.limit // 2 + 1) :]
                    segments = None if segments is None else segments[:, -tokens.shape[1] :]
                cache = model.new_cache(len(prompt))
                logits = model(tokens, cache, segments)[:, -1]
            else:
                logits = model(tokens[:, -1:], cache)[:, -1]
            chosen = sample(logits.float(), temperature, top_k, top_p, generator)  # (B,)
        yield chosen
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        if segments is not None:
            segments = torch.cat((segments, segments[:, -1:]), dim=1)
        if stop is not None:
            ended |= chosen == stop
            if bool(ended.all()):
                return


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Draw one token for each row of logits (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = keep_likely(logits / temperature, top_k, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def keep_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all but the likeliest tokens to -inf: the `top_k` first, and the fewest that have probability `top_p` together.

    Top-k: Fan et al. 2018. Top-p (nucleus): Holtzman et al. 2020; the token that reaches `top_p` is kept.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(dropped, float("-inf"))
    return logits
