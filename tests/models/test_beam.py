"""Beam search: against every text that there is, against greedy, and against the search of
transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Result
from test_skeletons import marian

from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.generation.sampling import generate

END, START = 0, 29


class Table:
    """A model of three tokens whose next token depends on the last two, by a table of logits; it
    needs no cache.
    """

    limit = 100

    def __init__(self) -> None:
        self.logits = 2 * torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(3))

    def eval(self) -> None:
        """Nothing to do."""

    def new_cache(self, batch: int, max_len: int) -> Any:
        return History()

    def __call__(
        self, tokens: torch.Tensor, cache: Any, segments: Any = None, last: bool = False
    ) -> torch.Tensor:
        cache.tokens = tokens if cache.tokens is None else torch.cat((cache.tokens, tokens), 1)
        return self.logits[cache.tokens[:, -2], cache.tokens[:, -1]][:, None]


class History:
    """All tokens so far."""

    tokens: torch.Tensor | None = None

    def select(self, rows: torch.Tensor, sources: torch.Tensor | None = None) -> None:
        """Keep these rows."""
        assert self.tokens is not None
        self.tokens = self.tokens[rows]


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_an_exhaustive_beam_finds_the_best_text(penalty: float) -> None:
    model, beam, longest = Table(), Beam(500, penalty), 5
    scores = {}
    for length in range(1, longest + 1):
        for body in itertools.product((1, 2), repeat=length - 1):
            for last in (0, 1, 2) if length == longest else (0,):
                text, total = [2, 1], 0.0
                for token in (*body, last):
                    total += float(model.logits[text[-2], text[-1]].log_softmax(-1)[token])
                    text.append(token)
                scores[tuple(t for t in text[2:] if t)] = total / ((5 + length) / 6) ** penalty
    found = beam_search(model, torch.tensor([[2, 1]]), beam, max_new_tokens=longest, stop=0)[0]
    best = sorted(scores, key=lambda text: -scores[text])
    assert len(found) == len(scores)
    assert [tuple(h.tokens) for h in found[:20]] == best[:20]
    assert [h.score for h in found[:20]] == pytest.approx(
        [scores[text] for text in best[:20]], abs=1e-5
    )


def source() -> torch.Tensor:
    """Six sources of different lengths."""
    tokens = torch.randint(1, 29, (6, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((9, 4, 1, 7, 2, 5)):
        tokens[row, length:] = -1
    return tokens


def test_one_beam_equals_greedy_search() -> None:
    ours, _ = marian()
    start = torch.full((6, 1), START)
    steps = torch.stack(
        list(generate(ours.generator(source()), start, max_new_tokens=15, stop=END)), 1
    ).tolist()
    greedy = [row[: row.index(END)] if END in row else row for row in steps]
    for penalty in (0.0, 1.0):
        found = beam_search(
            ours.generator(source()), start, Beam(1, penalty), max_new_tokens=15, stop=END
        )
        assert [row[0].tokens for row in found] == greedy


@pytest.mark.parametrize("width", [2, 5])
def test_beam_search_does_not_depend_on_the_batch_or_padding(width: int) -> None:
    ours, _ = marian()
    search: Any = {"max_new_tokens": 15, "stop": END}
    together = beam_search(
        ours.generator(source()), torch.full((6, 1), START), Beam(width), **search
    )
    for row, found in zip(source(), together, strict=True):
        alone = beam_search(
            ours.generator(row[row >= 0][None]), torch.tensor([[START]]), Beam(width), **search
        )[0]
        assert [h.tokens for h in alone] == [h.tokens for h in found]
        assert [h.score for h in alone] == pytest.approx([h.score for h in found], abs=1e-4)


@pytest.mark.parametrize("width", [2, 4])
def test_equals_the_beam_search_of_transformers(width: int) -> None:
    ours, theirs = marian()
    tokens = source()
    config = theirs.generation_config
    config.forced_eos_token_id, config.bad_words_ids, config.max_length = None, None, None
    want = theirs.generate(
        tokens.masked_fill(tokens < 0, 29), attention_mask=(tokens >= 0).long(), num_beams=width,
        max_new_tokens=12,
        length_penalty=0.0, early_stopping=False, do_sample=False, num_return_sequences=width,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = beam_search(
        ours.generator(tokens),
        torch.full((6, 1), START),
        Beam(width, 0.0),
        max_new_tokens=12,
        stop=END,
    )
    texts = [[t for t in row[1:] if t not in (END, 29)] for row in want.sequences.tolist()]
    got = [h for row in found for h in row]
    assert [h.tokens for h in got] == texts
    assert [h.score for h in got] == pytest.approx(want.sequences_scores.tolist(), abs=1e-4)


def test_the_task_and_the_command_bound_beams_alike(cli: Callable[..., Result]) -> None:
    """Row 28: 10^9 hypotheses took the memory that there was."""
    from bigmodel_cli.commands import predict
    from bigmodel_cli.config import MOST_BEAMS

    assert predict.MOST_BEAMS == MOST_BEAMS
    for option, most in (
        ("--beams", MOST_BEAMS),
        ("--n-best", MOST_BEAMS),
        ("--max-tokens", predict.MOST_TOKENS),
    ):
        result = cli("predict", "run", "a", option, most + 1)
        assert (result.status, f"less than or equal to {most}" in result.err) == (
            2,
            True,
        ), result.err
