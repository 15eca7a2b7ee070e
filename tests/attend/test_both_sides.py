"""Encoder-decoders in attend: the search's scores in one pass, hidden words, a known alignment."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Result
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from bigmodel_cli.attend.diff import DiffOptions, diff
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.pairs import (
    Pair,
    alignment_of,
    crossings,
    hidden_effect,
    read_pair,
    shares,
    token_nats,
)
from bigmodel_cli.attend.words import Word
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.generation.text import Decoding
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.parts import kernels
from bigmodel_cli.parts.contract import attending

Cli = Callable[..., Result]


def spec(steps: int, tokens: str, **cross: object) -> str:
    heads = {"num_heads": 4}
    own = {"type": "attention", **heads}
    block = {"mixer": own, "ffn": {"type": "relu"}, "placement": "post"}
    apart = {"ffn": {"type": "relu"}}  # each position keeps to its own word
    two_sided = {"source": ["train.a"], "target": ["train.b"], "val_fraction": 0.05}
    return yaml.safe_dump({
        "model": {
            "type": "seq2seq", "dim": 32, "encoder": [block if tokens == "bytes" else apart],
            "decoder": [{**block, "repeat": 2, "cross": {**heads, **cross}}],
        },
        "data": {"type": "pairs", **two_sided, "context": 16, "tokenizer": {"type": tokens}},
        "task": {"type": "seq2seq", "beams": 3},
        "train": {
            "steps": steps, "batch_size": 32, "optimizer": {"lr": 5e-3}, "precision": "fp32",
            "schedule": {"type": "cosine", "warmup": 30},
        },
    })  # fmt: skip


def trained(
    cli: Cli, steps: int, words: str = "abcdefgh", between: str = " ", **cross: object
) -> Loaded:
    """A model of strings of words, which it learns to turn around."""
    draw = random.Random(0)
    lines = [draw.sample(words, draw.randint(2, 5)) for _ in range(1500)]
    Path("train.a").write_text("".join(between.join(line) + "\n" for line in lines))
    Path("train.b").write_text("".join(between.join(line[::-1]) + "\n" for line in lines))
    Path("turn.yaml").write_text(spec(steps, "bytes" if between else "characters", **cross))
    done = cli("pretrain", "turn.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 0, done.err
    return load_checkpoint(Path("run"), "cpu", tell=lambda said: None)


def test_a_trained_model_shows_which_word_comes_from_which(cli: Cli) -> None:
    loaded = trained(cli, 160, "天地玄黃宇宙洪荒", "")  # each character is a word
    right, needed, count = 0, 0, 0
    for given in ("天玄宙", "黃宇洪荒", "荒地", "地宇天玄宙"):
        look = look_at(loaded, given)
        assert look.answer == given[::-1]
        found = look.extra["alignment"]
        assert found["target"] == [*given[::-1]]
        assert found["source"] == [*given, "<end>"]
        for pair in found["pairs"]:
            count += 1
            right += pair["source"][0]["word"] == pair["target"]
            needed += pair["needs"] == pair["target"]
    assert (count, needed) == (14, 14)  # hidden, a word is missed by its own image alone
    assert right >= 12  # attention looks elsewhere now and then
    kinds = [(layer.kind, layer.name.split(".")[0]) for layer in look.layers]
    assert kinds == [("self", "decoder"), ("cross", "decoder")] * 2
    assert look.difference < 1e-5
    assert json.loads(json.dumps(look.extra)) == look.extra
    given = look_at(loaded, "天玄宙", target="宙玄天")
    assert given.extra["alignment"] == look_at(loaded, "天玄宙").extra["alignment"]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_one_pass_gives_the_search_s_own_scores(beams: int, cli: Cli) -> None:
    loaded = trained(cli, 8)  # little learnt: texts of the greatest length, without an end
    ends = set()
    for given in ("a b c", "h", "g f e d"):
        for most in (None, 4):
            pair = read_pair(loaded, given, "x", Decoding(beams=beams, max_tokens=most))
            nats = token_nats(pair, pair.run())[0]
            ends.add(pair.ended)
            if pair.nats is None:
                first = pair.run()[0, pair.begins - 1 :].argmax(-1).tolist()
                assert first[: len(pair.tokens)] == pair.tokens
            else:
                assert float(nats.sum()) == pytest.approx(pair.nats, abs=1e-4)
            told = cli("predict", "run", given, "--beams", beams, "--max-tokens", most or 15)
            if most:
                assert json.loads(told.out)["text"] == pair.text
    assert False in ends


def test_tokens_that_are_never_written_have_no_probability(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = trained(cli, 8)
    plain = read_pair(loaded, "a b", "x", Decoding(beams=2, max_tokens=5))
    written = set(plain.tokens)
    never, first = tuple(written)[:1], tuple(written - set(tuple(written)[:1]))[:1]
    kind = type(plain.tokenizer)
    monkeypatch.setattr(kind, "never", property(lambda self: never))
    monkeypatch.setattr(kind, "never_first", property(lambda self: first))
    pair = read_pair(loaded, "a b", "x", Decoding(beams=2, max_tokens=5))
    assert never[0] not in pair.tokens
    assert pair.tokens[0] not in first
    nats = token_nats(pair, pair.run())[0]
    assert float(nats.sum()) == pytest.approx(pair.nats, abs=1e-4)
    assert float(nats.sum()) != pytest.approx(plain.nats, abs=1e-4)


@pytest.mark.parametrize("cross", [{}, {"kv_heads": 2, "softcap": 3.0}])
def test_hiding_a_word_is_leaving_its_positions_out_of_the_memory(
    cross: dict[str, object], cli: Cli
) -> None:
    loaded = trained(cli, 8, **cross)
    pair = read_pair(loaded, "ab c d", "x", Decoding(beams=2))
    source = pair.source_words()
    assert [(w.text, w.first, w.stop) for w in source[:2]] == [("ab", 0, 2), ("c", 2, 4)]
    found = hidden_effect(pair, source)
    assert found is not None
    whole = by_hand(pair, None)
    for number, word in enumerate(source):
        if word.special:
            assert found[:, number].isnan().all()
        else:
            assert torch.allclose(found[:, number], whole - by_hand(pair, word), atol=1e-5)
    assert float(found[:, 0].abs().max()) > 1e-4
    many = [Word("x", 0, 1)] * 101
    assert hidden_effect(pair, many) is None


def by_hand(pair: Pair, hidden: Word | None) -> Tensor:
    """(N)   log-probabilities of the target where a word's positions are no part of the memory."""
    model = pair.loaded.model
    with torch.no_grad():
        read = model.encode(pair.batch["source"])  # type: ignore[operator]
        keep = torch.ones(1, read.memory.shape[1], dtype=torch.bool)
        if hidden is not None:
            keep[:, hidden.first : hidden.stop] = False
        left = replace(read, memory=read.memory[:, keep[0]], memory_mask=None)
        logs = model.decode(pair.batch["target"][:, :-1], left)[0].log_softmax(-1)  # type: ignore[operator]
    rows = range(pair.begins - 1, pair.begins - 1 + len(pair.tokens))
    return torch.stack([logs[row, t] for row, t in zip(rows, pair.tokens, strict=True)])


def test_weights_are_exact_where_the_model_runs_in_bf16(cli: Cli) -> None:
    loaded = trained(cli, 8, kv_heads=2)
    train = loaded.spec.train.model_copy(update={"precision": "bf16"})
    half = replace(loaded, spec=loaded.spec.model_copy(update={"train": train}))
    pair = read_pair(half, "ab c d", "x", Decoding(beams=1, max_tokens=4))
    for _, weights, _ in crossings(pair):
        assert weights.sum(-1).sub(1).abs().max() < 1e-5


def test_shares_are_of_what_all_heads_move(cli: Cli) -> None:
    loaded = trained(cli, 8, kv_heads=2)
    pair = read_pair(loaded, "ab c d", "x", Decoding(beams=1, max_tokens=4))
    given: list[tuple[Tensor, Tensor]] = []
    for name, weights, sizes in crossings(pair):
        part = loaded.model.get_submodule(name)
        assert weights.sum(-1).sub(1).abs().max() < 1e-5
        assert sizes is not None
        with torch.no_grad():
            memory = loaded.model.encode(pair.batch["source"]).memory  # type: ignore[operator]
            values = part.read(memory)[1][0]  # type: ignore[operator]
        heads, width = weights.shape[0], values.shape[-1]
        moved = torch.zeros(weights.shape[1:])
        for head in range(heads):
            block = part.out.weight[:, head * width : (head + 1) * width]  # type: ignore[union-attr]
            lengths = (values[head // 2] @ block.T).norm(dim=-1)
            moved += weights[head] * lengths
        expected = moved / moved.sum(-1, keepdim=True)
        assert torch.allclose(shares(weights, sizes), expected, atol=1e-5)
        given.append((weights, sizes))
    assert len(given) == 2


def test_targets_that_are_given(cli: Cli) -> None:
    loaded = trained(cli, 8)
    look = look_at(loaded, "a b", target="b a")
    assert look.answer == "b a"
    assert "the target is given" in look.notes[-1]
    too_long = "room for 16 tokens, the end included"
    for target, message in (("", "--target is empty"), ("a " * 20, too_long)):
        with pytest.raises(DataError, match=message):
            look_at(loaded, "a b", target=target)
    with pytest.raises(DataError, match="is empty"):
        look_at(loaded, "", place="line 3")
    long = look_at(loaded, "a b c d e f g h " * 4)
    assert "the source is cut: the model reads 16 tokens" in long.notes[0]


def test_nothing_written_has_no_alignment(cli: Cli) -> None:
    loaded = trained(cli, 8)
    pair = read_pair(loaded, "a b", "x", Decoding(beams=1, max_tokens=3))
    assert alignment_of(replace(pair, tokens=[])) is None


def test_a_target_is_for_models_of_two_sides(cli: Cli) -> None:
    Path("a.txt").write_text("some words to read " * 40)
    block = "{mixer: {type: attention, num_heads: 2}}"
    Path("d.yaml").write_text(
        f"model: {{type: decoder, dim: 16, blocks: [{block}]}}\ndata: {{type: text, files: [a.txt],"
        " context: 8, val_fraction: 0.2}\ntask: causal_lm\ntrain: {steps: 1, batch_size: 2}\n"
    )
    assert cli("pretrain", "d.yaml", "--out", "one", "--device", "cpu").status == 0
    loaded = load_checkpoint(Path("one"), "cpu", tell=lambda said: None)
    with pytest.raises(SpecError, match="--target is for models that read a source"):
        look_at(loaded, "some", target="words")


def test_two_of_them_are_compared_over_what_the_decoder_reads(cli: Cli) -> None:
    """Divergences are SciPy's of dense weights, for a target that fills the context: all of it but
    its last token is read.
    """
    one = trained(cli, 2)
    two = replace(one, model=copy.deepcopy(one.model))
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokenizer = load_tokenizer(one.assets)
    written = [*tokenizer.encode("a b c d e f g h"), tokenizer.end_of_text]
    assert len(written) == 16  # the context
    target = torch.tensor([[tokenizer.target_start, *written[:-1]]])
    source = torch.tensor([[*tokenizer.encode("c a"), tokenizer.end_of_text]])
    found = diff(one, two, "c a", DiffOptions(target="a b c d e f g h"))
    dense: list[list[torch.Tensor]] = []
    for loaded in (one, two):
        dense.append([])
        for part in attending(loaded.model).values():
            part.watcher = lambda call: dense[-1].append(
                kernels.weights(call.q, call.k, call.spec)[0]
            )
        with torch.no_grad():
            loaded.model(source, target)
        for part in attending(loaded.model).values():
            part.watcher = None
    assert [len(p[0]) for p in dense[0]] == [4, 16, 16, 16, 16]
    for layer, p, q in zip(found.layers, *dense, strict=True):
        want = jensenshannon(p.double(), q.double(), base=2, axis=-1)
        assert layer.bits is not None
        np.testing.assert_allclose(layer.bits, (want**2).mean(-1), atol=2e-6)
    with pytest.raises(DataError, match="the model has room for 16 tokens, the end included"):
        diff(one, two, "c a", DiffOptions(target="a b c d e f g hh"))
