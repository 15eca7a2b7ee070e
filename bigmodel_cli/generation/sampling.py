"""Generation with a cache: greedy, or sampled in the ways of `Sampling`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models.base import Generator
from bigmodel_cli.models.init import Cache
from bigmodel_cli.parts.context import padding_segments


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 keep every token.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


GREEDY = Sampling(0.0)
Stop = int | Collection[int] | None
"""The token that ends a text, or several of them."""


def stops_at(tokens: Tensor, stop: Stop) -> Tensor:
    """Which of the tokens end a text; the shape of `tokens`."""
    if stop is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    if isinstance(stop, int):
        return tokens == stop
    return torch.isin(tokens, torch.tensor([*stop], device=tokens.device, dtype=tokens.dtype))


def generate(
    model: Generator,
    prompt: Tensor,
    sampling: Sampling = GREEDY,
    *,
    max_new_tokens: int,
    draws: Tensor | None = None,
    stop: Stop = None,
    real: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the next token (B,) of each sequence of `prompt` (B, T), up to `max_new_tokens` times.

    `draws` (B, max_new_tokens) are uniform numbers for sampling, unused where `temperature` is 0.
    Ends when every sequence has produced `stop`, or one of several. Where a row reaches the model's
    maximum length, its later half is read again and it goes on from there; a longer prompt is cut
    from the left.
    `real` (B, T) is False where a shorter prompt is padded, on its left. Each row has its own
    window, positions and draws: its text does not depend on the other rows.
    """
    model.eval()
    # (B,): the last tokens of each row that are looked at
    own = own_lengths(prompt, real).clamp(max=model.limit)
    tokens, filled = prompt, 0
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    seen = Seen(prompt, real) if sampling.repetition_penalty != 1 else None
    cache: Cache | None = None
    for number in range(max_new_tokens):
        with torch.no_grad():  # not inference mode, in which autocast casts every weight again
            if cache is None or filled == model.limit:
                own = slide(own, model.limit)
                tokens, segments = last_tokens(tokens, own)
                filled = tokens.shape[1]
                cache = model.new_cache(
                    len(prompt), min(model.limit, filled + max_new_tokens - number)
                )
                logits = model(tokens, cache, segments, last=True)[:, -1]
            else:
                logits, filled = model(tokens[:, -1:], cache, last=True)[:, -1], filled + 1
            logits = (
                logits.float()
                if seen is None
                else seen.penalised(logits.float(), sampling.repetition_penalty)
            )
            chosen = sample(logits, sampling, None if draws is None else draws[:, number])  # (B,)
            if seen is not None:
                seen.add(chosen)
        yield chosen
        tokens, own = torch.cat((tokens, chosen[:, None]), dim=1), own + 1
        if stop is not None:
            ended |= stops_at(chosen, stop)
            if bool(ended.all()):
                return


def own_lengths(prompt: Tensor, real: Tensor | None) -> Tensor:
    """(B,)   the tokens of each row of `prompt` (B, T) that are not padding."""
    if real is None:
        return torch.full((len(prompt),), prompt.shape[1], device=prompt.device)
    return real.sum(1)


def slide(own: Tensor, limit: int) -> Tensor:
    """(B,) -> (B,)   each row's window: beyond `limit`, the later half and the newest token."""
    return torch.where(own > limit, limit // 2 + 1, own)


def last_tokens(tokens: Tensor, own: Tensor) -> tuple[Tensor, Tensor | None]:
    """The last `own` (B,) tokens of each row, left-padded (B, longest), and segments (B, longest).

    The segments are None where no row is padded. The tokens in the padding do not matter.
    """
    longest = int(own.max())
    place = torch.arange(longest, device=tokens.device)
    return tokens[:, tokens.shape[1] - longest :], padding_segments(place >= longest - own[:, None])


class Seen:
    """Which tokens each row has had, prompt included, for the repetition penalty.

    As in transformers, the token that ends texts counts too, also where it begins the prompt: a
    penalty then makes texts longer. Padding, which transformers counts, does not: what a row gets
    does not depend on its neighbours.
    """

    def __init__(self, prompt: Tensor, real: Tensor | None) -> None:
        # The last one is never padding.
        self.tokens = prompt if real is None else torch.where(real, prompt, prompt[:, -1:])

    def add(self, chosen: Tensor) -> None:
        """Add the next tokens (B,)."""
        self.tokens = torch.cat((self.tokens, chosen[:, None]), 1)

    def penalised(self, logits: Tensor, penalty: float) -> Tensor:
        """(B, V)   logits of seen tokens divided by the penalty, multiplied if negative.

        Keskar et al. 2019.
        """
        old = logits.gather(1, self.tokens)
        changed = torch.where(old > 0, old / penalty, old * penalty)
        return logits.scatter(1, self.tokens, changed)


def sample(logits: Tensor, sampling: Sampling, draws: Tensor | None) -> Tensor:
    """(B, V) -> (B,)   argmax, or inverse-CDF sampling with the given uniforms (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    assert draws is not None, "drawing needs numbers"
    likely = _likeliest(logits, sampling.top_k)
    if likely is not None:
        chosen = sample(logits.gather(1, likely), replace(sampling, top_k=0), draws)
        return likely.gather(1, chosen[:, None])[:, 0]
    logits = logits.double()
    logits = (
        logits - logits.max(-1, keepdim=True).values
    ) / sampling.temperature  # at most 0, so that no temperature overflows
    logits = keep_likely(logits, sampling)
    reached = logits.softmax(-1).cumsum(-1)  # (B, V)
    places = torch.searchsorted(reached, (draws.double() * reached[:, -1])[:, None], right=True)[
        :, 0
    ]
    # Rounding must not choose an excluded token.
    last = logits.shape[-1] - 1 - logits.isfinite().flip(-1).int().argmax(-1)
    return torch.minimum(places, last)


def _likeliest(logits: Tensor, top_k: int) -> Tensor | None:
    """(B, V) -> (B, top_k)   the ids of the likeliest tokens, in their order: only these need be
    looked at.

    None where a tie makes it matter which of them are taken, and on devices that would be waited
    for.
    """
    if not 0 < top_k < logits.shape[-1] or logits.device.type != "cpu":
        return None
    values, ids = logits.topk(top_k + 1, dim=-1)
    if not bool((values[:, -2] > values[:, -1]).all()):
        return None
    return ids[:, :-1].sort(-1).values


def keep_likely(logits: Tensor, sampling: Sampling) -> Tensor:
    """Set all but the likeliest tokens to -inf.

    Kept are the first `top_k` (Fan et al. 2018), never more; the fewest that have probability
    `top_p` together, the one that reaches it included (nucleus; Holtzman et al. 2020); and those
    with at least `min_p` times the largest probability (Nguyen et al. 2024). Ties go to the lower
    token id, as in `argmax`, so that `top_k` 1 is greedy.
    """
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        above, equal = logits > least, logits == least
        fits = equal.cumsum(-1) <= sampling.top_k - above.sum(-1, keepdim=True)
        logits = logits.masked_fill(~(above | (equal & fits)), float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(
            1, order, before >= sampling.top_p
        )
        logits = logits.masked_fill(dropped, float("-inf"))
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        likeliest = probabilities.max(-1, keepdim=True).values
        logits = logits.masked_fill(probabilities < sampling.min_p * likeliest, float("-inf"))
    return logits
