"""Masked language modelling hides what it says, and counts what it hid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, loss_of, scores_of
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.order import keys_of
from bigmodel_cli.tasks.masked_lm import MaskedLMOptions

WORDS = DatasetInfo(vocab_size=100)


class Spy(nn.Module):
    """Records its inputs; its logits are the true token's with near certainty."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, seen: Tensor, masked: Tensor, at: Tensor) -> Tensor:
        self.seen, self.masked = seen, masked
        self.at = (
            torch.zeros(seen.numel(), dtype=torch.bool).index_fill(0, at, True).view(seen.shape)
        )
        return 50.0 * nn.functional.one_hot(self.tokens[:, :-1].flatten()[at], 100).float()


def test_rates_of_hidden_and_replaced_tokens() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(100, (64, 129))
    tokens[:8, 100:] = -1
    spy = Spy(tokens)
    loss, count = loss_of(
        MaskedLMOptions().build(WORDS), spy, {"tokens": tokens, "key": keys_of(0, 0, np.arange(64))}
    )
    real = tokens[:, :-1] >= 0
    assert float(loss) < 1e-3
    assert int(count) == int(spy.at.sum())
    assert not bool((spy.at & ~real).any())
    assert abs(float(spy.at.sum() / real.sum()) - 0.15) < 0.01
    assert abs(float((spy.masked & spy.at).sum() / spy.at.sum()) - 0.8) < 0.03
    assert not bool((spy.masked & ~spy.at).any())
    changed = spy.seen != tokens[:, :-1]
    assert not bool((changed & (~spy.at | spy.masked)).any())
    assert abs(float(changed.sum() / spy.at.sum()) - 0.1) < 0.03


def share(count: Tensor, of: Tensor, p: float) -> None:
    """So many of so many, within five deviations of the binomial distribution."""
    n = int(of)
    assert abs(int(count) - n * p) <= 5 * (n * p * (1 - p)) ** 0.5, (int(count) / n, p)


@pytest.mark.parametrize("length", [128, 64, 20, 3])
@pytest.mark.parametrize(
    ("fraction", "masked", "swapped"), [(0.15, 0.8, 0.1), (0.4, 0.3, 0.7), (0.3, 0.0, 0.5)]
)
def test_shares_are_those_of_the_options_however_long_the_padding(
    length: int, fraction: float, masked: float, swapped: float
) -> None:
    rows = 40_000 // length
    # ten kinds of a hundred
    tokens = torch.randint(10, 20, (rows, 129), generator=torch.Generator().manual_seed(length))
    tokens[:, length:] = -1
    spy = Spy(tokens)
    batch = {"tokens": tokens, "key": keys_of(3, 1, np.arange(rows))}
    loss_of(
        MaskedLMOptions(mask_prob=fraction, replace_mask=masked, replace_random=swapped).build(
            WORDS
        ),
        spy,
        batch,
    )
    real, changed = tokens[:, :-1] >= 0, spy.seen != tokens[:, :-1]
    assert not bool(spy.at[~real].any())
    share(spy.at.sum(), real.sum(), fraction)
    share(spy.masked.sum(), spy.at.sum(), masked)
    share(changed.sum(), spy.at.sum(), swapped * 0.99)  # one of a hundred is drawn in its own place
    assert not bool((changed & spy.masked).any())
    others = torch.bincount(spy.seen[changed], minlength=100).double()
    even = torch.full((100,), float(others.sum()) / 99, dtype=torch.float64)
    even[10:20] *= 0.9  # where the token itself was one of those ten, it is not another
    assert float(((others - even) ** 2 / even).sum()) < 170  # chi square of 99: 1 in 70,000


def test_another_epoch_hides_others_and_a_row_may_have_nothing_to_find() -> None:
    tokens = torch.randint(100, (200, 5))
    seen, task = [], MaskedLMOptions().build(WORDS)
    for epoch in (0, 1, 0):
        spy = Spy(tokens)
        loss_of(task, spy, {"tokens": tokens, "key": keys_of(0, epoch, np.arange(200))})
        seen.append(spy.at)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    empty = (~seen[0].any(1)).nonzero()[:3, 0]  # 0.85^4 of the rows
    assert len(empty) == 3
    batch = {"tokens": tokens[empty], "key": keys_of(0, 0, empty.numpy())}
    loss, count = loss_of(task, Spy(tokens[empty]), batch)
    assert (float(loss), int(count)) == (0.0, 0)
    assert scores_of(task, Spy(tokens[empty]), batch)["loss"][1].tolist() == [0, 0, 0]


def test_shares_of_more_than_all_are_refused(cli: Callable[..., Result]) -> None:
    Path("shares.yaml").write_text(
        "model: {type: encoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
        "data: {type: stdlib, context: 16}\n"
        "task: {type: masked_lm, replace_mask: 0.9, replace_random: 0.2}\n"
        "train: {steps: 1, batch_size: 2}\n"
    )
    refused = cli("pretrain", "shares.yaml", "--dry-run")
    assert refused.status == 2
    assert "shares.yaml:3:" in refused.err
    assert "replace_mask 0.9 and replace_random 0.2 are more than 1 together" in refused.err
    for masked, swapped in ((0.7, 0.3), (0.9, 0.1), (0.0, 1.0), (1 / 3, 2 / 3)):
        MaskedLMOptions(replace_mask=masked, replace_random=swapped)


def test_evaluation_hides_the_same_whatever_the_batch() -> None:
    tokens = torch.randint(100, (32, 65), generator=torch.Generator().manual_seed(1))
    tokens[3, 20:] = -1
    task = MaskedLMOptions(mask_prob=0.25).build(WORDS)
    keys = keys_of(0, 0, np.arange(32))
    whole = scores_of(task, Spy(tokens), {"tokens": tokens, "key": keys})
    alone = [
        scores_of(task, Spy(row[None]), {"tokens": row[None], "key": key[None]})
        for row, key in zip(tokens, keys, strict=True)
    ]
    for name, (sums, counts) in whole.items():
        assert torch.equal(sums, torch.cat([a[name][0] for a in alone]))
        assert torch.equal(counts, torch.cat([a[name][1] for a in alone]))
    counts = whole["accuracy"][1]
    assert torch.equal(whole["accuracy"][0], counts.double())
    assert abs(float(counts.sum()) / (31 * 64 + 20) - 0.25) < 0.04
    assert int(counts[3]) <= 12


@pytest.mark.no_cover
def test_an_encoder_learns_to_find_hidden_tokens(
    tmp_path: Path, cli: Callable[..., Result]
) -> None:
    # a window is no multiple of the period: rows differ
    Path("abc.txt").write_text("abcdefg" * 700)
    Path("masked.yaml").write_text(
        "model: {type: encoder, dim: 32, position: {type: learned}, init_std: 0.1, blocks:"
        " [{repeat: 2, mixer: {type: attention, num_heads: 4}, ffn: {type: gelu}}]}\ndata: {type:"
        " text, files: [abc.txt], context: 16, tokenizer: {type: characters}}\ntask: {type:"
        " masked_lm}\ntrain: {steps: 250, batch_size: 16, optimizer: {lr: 5e-3}, precision: fp32,"
        " validate_every: 250}\n"
    )
    trained = cli("pretrain", "masked.yaml", "--out", "run")
    assert trained.status == 0, trained.err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert last["accuracy"] > 0.95  # every letter follows from its neighbours
    assert abs(json.loads(cli("eval", "run", "--json").out)["loss"] - last["loss"]) < 1e-5
    looked = cli("attend", "run", "abcdefg", "--json", "--query", 0, "--top", 7)
    assert looked.status == 0, looked.err
    for layer in json.loads(looked.out)["layers"]:
        assert not layer["causal"]
        assert {len(head["reads"]) for head in layer["heads"]} == {7}  # it sees what comes after it
    refused = cli("predict", "run", "abc")
    assert refused.status == 2
    assert "trained for masked_lm" in refused.err


def test_whole_words_are_hidden_together_and_special_tokens_never() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(100, (64, 129))
    words = (torch.rand(64, 129) < 0.4).cumsum(1)
    words[:, 0] = words[:, 64] = -1  # marks
    tokens[:8, 100:] = words[:8, 100:] = -1
    batch = {"tokens": tokens, "words": words, "key": keys_of(1, 0, np.arange(64))}
    seen_words = words[:, :-1]
    for whole in (True, False):
        spy = Spy(tokens)
        task = MaskedLMOptions(whole_words=whole).build(WORDS)
        assert task.reads == (("tokens", "words") if whole else ("tokens",))
        loss_of(task, spy, batch)
        trained = spy.at
        _, counts = scores_of(task, spy, batch)["loss"]
        evaluated = spy.at
        assert torch.equal(counts, evaluated.sum(1))
        for at in (trained, evaluated):
            assert not bool(at[seen_words < 0].any())
            assert abs(float(at.sum() / (seen_words >= 0).sum()) - 0.15) < 0.015
            split = 0
            for row, number in zip(at, seen_words, strict=True):
                for word in number[number >= 0].unique():
                    hidden = row[number == word]
                    split += bool(hidden.any()) and not bool(hidden.all())
            assert (split == 0) == whole


def test_words_are_known_from_the_tokenizer_alone(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from bigmodel_cli.data.text.bpe import train_bpe
    from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer, CharacterTokenizer
    from bigmodel_cli.data.text.tokenizer_files import read_tokenizer
    from bigmodel_cli.data.text.word_ids import Words

    text = "the films' café-owner, 2nd  one\nfor all"
    vocab = {
        w: i for i, w in enumerate(["[UNK]", "the", "fi", "##lm", "##s", "'", ",", "one", "##one"])
    }
    piece = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    piece.pre_tokenizer, piece.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    spaced = {w: i for i, w in enumerate(["▁the", "▁fi", "lms", "'", "▁one"])}
    sentence = Tokenizer(models.WordLevel(spaced, unk_token="'"))
    sentence.decoder = decoders.Metaspace()
    cases = [
        (ByteTokenizer(), text),
        (CharacterTokenizer(text, end=True), text),
        (train_bpe([text] * 3, 280), text),
    ]
    for tokenizer, wanted in cases:
        tokens = tokenizer.encode(wanted)
        end = tokenizer.end_of_text
        assert end is not None
        found = Words(tokenizer)(torch.tensor([[end, *tokens, end, -1]]))[0].tolist()
        assert (found[0], found[-2], found[-1]) == (-1, -1, -1)
        letters: dict[int, list[int]] = {}
        for token, number in zip(tokens, found[1:-2], strict=True):
            letters.setdefault(number, []).append(token)
        pieces = [tokenizer.decode(t) for t in letters.values()]
        assert "".join(pieces) == wanted
        for word in ("films", "café", "owner", "2nd", "one", "all", "the"):
            assert word in [p.strip() for p in pieces]
    wordpiece = read_tokenizer(piece.to_str().encode(), "piece.json")
    assert Words(wordpiece)(torch.tensor([[1, 2, 3, 4, 5, 7, 6, 7, 8]])).tolist() == [
        [0, 1, 1, 1, 2, 3, 4, 5, 5]
    ]
    metaspace = read_tokenizer(sentence.to_str().encode(), "sentence.json")
    assert Words(metaspace)(torch.tensor([[0, 1, 2, 3, 4]])).tolist() == [[0, 1, 1, 2, 3]]


def test_windows_of_text_number_their_words() -> None:
    from bigmodel_cli.data import open_data
    from bigmodel_cli.data.text.documents import TextOptions

    Path("words.txt").write_text("some words and more " * 40)
    values = {
        "files": ["words.txt"],
        "context": 12,
        "tokenizer": {"type": "characters"},
        "words": True,
    }
    split = open_data(TextOptions.model_validate(values), base=Path(), say=[].append).split("val")
    held = split.batch(np.arange(3), 0, 0, False)
    split.to(torch.device("cpu"))
    resident = split.batch(np.arange(3), 0, 0, False)
    assert torch.equal(held["words"], resident["words"])
    assert held["words"].shape == held["tokens"].shape
    assert held["words"][:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("fraction", [0.1, 0.7])
def test_a_rate_counts_the_tokens_that_are_read_and_not_those_hidden(
    fraction: float, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    spec, rows = tmp_path / "rate.yaml", 12
    (tmp_path / "some.txt").write_text("one two three four five six. " * 60)
    spec.write_text(
        "model: {type: encoder, dim: 8, blocks: [{mixer: {type: attention, num_heads:"
        f" 2}}}}]}}\ndata: {{type: text, files: [{tmp_path}/some.txt], context: 20, tokenizer:"
        f" {{type: bytes}}}}\ntask: {{type: masked_lm, mask_prob: {fraction}}}\ntrain: {{steps: 1,"
        f" batch_size: {rows}, micro_batch_size: 4, precision: fp32}}\n"
    )
    result = cli("bench", spec, "--seconds", 0.1, "--json")
    assert result.status == 0, result.err
    (timing,) = json.loads(result.out)["benchmarks"]
    assert timing["unit"] == "tokens"
    assert timing["per_second"] * timing["median_s"] == pytest.approx(rows * 20)
    tokens = torch.full((3, 9), 5)
    tokens[1, 4:] = -1
    assert int(MaskedLMOptions(mask_prob=fraction).build().size({"tokens": tokens})) == 8 + 4 + 8
