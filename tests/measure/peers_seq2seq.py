"""Training an encoder-decoder on Multi30k, beside JoeyNMT's network and a plain loop, in turns.

    python tests/measure/peers_seq2seq.py --data DATA [--seconds 20] [--clock cpu]

All train 4 + 4 layers of width 128 (4 heads, feed-forward 256, one matrix for embeddings and
logits, dropout 0.3, label smoothing 0.1) on the same tokens of a joint BPE of 9,700, about 4,096
target tokens in a batch. bigmodel trains as `pretrain` does. JoeyNMT's network and loss (install
its wheel) get the batches that its sampler makes: sentences in a random order until their number
times the longest reaches 4,096; so does the plain loop over `nn.Transformer`. Tokens that are
padding count for none. In one process, A B C C B A; a JSON line for each turn, a table at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bigmodel_cli.bench.targets import opened
from bigmodel_cli.bench.training import Training
from bigmodel_cli.overrides import Override

WIDTH, LAYERS, HEADS, FEED, VOCAB, TOKENS, DROPOUT = 128, 4, 4, 256, 9700, 4096, 0.3
Step = Callable[[], int]
"""A training step; it gives its target tokens."""
Pairs = list[tuple[list[int], list[int]]]


def spec_of(data: Path) -> list[Override]:
    """What the sample spec is changed in."""
    block = {"num_heads": HEADS, "dropout": 0.0}
    stack = {
        "repeat": LAYERS, "mixer": {"type": "attention", **block},
        "ffn": {"type": "relu", "hidden": FEED, "dropout": DROPOUT}, "dropout": DROPOUT,
    }  # fmt: skip
    values: dict[str, Any] = {
        "model.dim": WIDTH, "model.encoder": [stack], "model.decoder": [{**stack, "cross": block}],
        "data.tokenizer": {"type": "bpe", "vocab_size": VOCAB}, "train.batch_tokens": TOKENS,
    }  # fmt: skip
    for split in ("", "val_", "test_"):
        name = {"": "train", "val_": "val", "test_": "test_2016_flickr"}[split]
        values[f"data.{split}source"] = [str(data / "multi30k" / f"{name}.en.gz")]
        values[f"data.{split}target"] = [str(data / "multi30k" / f"{name}.de.gz")]
    return [Override(path, value, "peers_seq2seq.py") for path, value in values.items()]


def ours(training: Training) -> Step:
    """As `pretrain` and `bench` take a step."""

    def step() -> int:
        before = training.size
        training.step(False)
        return int(training.size - before)

    return step


def pairs_of(training: Training, count: int) -> Pairs:
    """Sources and targets as our tokens."""
    found: Pairs = []
    assert training.loader is not None
    for batches in training.loader.steps(0, 10**9):
        for batch in batches:
            for rows in zip(batch["source"].tolist(), batch["target"].tolist(), strict=True):
                source, target = ([t for t in row if t >= 0] for row in rows)
                found.append((source, target))
        if len(found) >= count:
            return found
    return found


def by_tokens(pairs: Pairs, padding: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (B, S), (B, T) in a random order, as JoeyNMT's sampler for tokens."""
    draw = random.Random(7)
    while True:
        order, batch, longest = draw.sample(pairs, len(pairs)), Pairs(), 0
        for pair in order:
            batch.append(pair)
            longest = max(longest, len(pair[1]))
            if len(batch) * longest >= TOKENS:
                yield padded([s for s, _ in batch], padding), padded([t for _, t in batch], padding)
                batch, longest = [], 0


def padded(rows: list[list[int]], padding: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def joeynmt(pairs: Pairs, vocab: int) -> Step:
    """JoeyNMT's network, loss, clipping and Adam."""
    from joeynmt.decoders import TransformerDecoder
    from joeynmt.embeddings import Embeddings
    from joeynmt.encoders import TransformerEncoder
    from joeynmt.initialization import initialize_model
    from joeynmt.model import Model

    size = {"hidden_size": WIDTH, "ff_size": FEED, "num_heads": HEADS, "num_layers": LAYERS}
    size |= {"dropout": DROPOUT, "emb_dropout": DROPOUT, "layer_norm": "pre"}
    table = Embeddings(WIDTH, scale=True, vocab_size=vocab + 1, padding_idx=vocab)
    words = SimpleNamespace(
        pad_index=vocab, unk_index=0, bos_index=0, eos_index=0, sep_index=0, specials=[],
        lang_tags=[],
    )  # fmt: skip
    decoder = TransformerDecoder(vocab_size=vocab + 1, **size)
    model = Model(TransformerEncoder(**size), decoder, table, table, words, words)
    model.decoder.output_layer.weight = table.lut.weight
    settings = {"initializer": "xavier_uniform", "embed_initializer": "xavier_uniform"}
    settings |= {"bias_initializer": "zeros", "tied_softmax": True, "tied_embeddings": True}
    initialize_model(model, settings, vocab, vocab)
    model.loss_function = ("crossentropy", 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.9, 0.98))
    batches = by_tokens(pairs, vocab)
    model.train()

    def step() -> int:
        source, target = next(batches)
        mask = (source != vocab)[:, None]
        wanted = target[:, 1:]
        loss, *_ = model(
            return_type="loss", src=source, trg_input=target[:, :-1], trg=wanted, src_mask=mask,
            src_length=mask.sum(-1)[:, 0], trg_mask=(wanted != vocab)[:, None],
        )  # fmt: skip
        count = int((wanted != vocab).sum())
        (loss / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return count

    return step


def plain(pairs: Pairs, vocab: int) -> Step:
    """A loop over PyTorch's own Transformer, in fp32."""
    table = nn.Embedding(vocab + 1, WIDTH, padding_idx=vocab)
    nn.init.normal_(table.weight, std=WIDTH**-0.5)
    model = nn.Transformer(
        WIDTH, HEADS, LAYERS, LAYERS, FEED, DROPOUT, batch_first=True, norm_first=True
    )
    waves = positions(200)
    weights = [*table.parameters(), *model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, betas=(0.9, 0.98), fused=True)
    batches = by_tokens(pairs, vocab)

    def embedded(tokens: torch.Tensor) -> torch.Tensor:
        x = table(tokens) * math.sqrt(WIDTH) + waves[: tokens.shape[1]]
        return F.dropout(x, DROPOUT)

    def step() -> int:
        source, target = next(batches)
        given, wanted = target[:, :-1], target[:, 1:]
        later = nn.Transformer.generate_square_subsequent_mask(given.shape[1]) != 0
        y = model(
            embedded(source), embedded(given), tgt_mask=later, tgt_is_causal=True,
            src_key_padding_mask=source == vocab, memory_key_padding_mask=source == vocab,
        )  # fmt: skip
        logits = F.linear(y, table.weight).flatten(0, 1)
        loss = F.cross_entropy(logits, wanted.flatten(), ignore_index=vocab, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return int((wanted != vocab).sum())

    return step


def positions(length: int) -> torch.Tensor:
    """(T, C) sines and cosines."""
    rate = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(1e4) / WIDTH))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def turn(step: Step, seconds: float, clock: Callable[[], float]) -> float:
    """Target tokens/s."""
    start, count = clock(), 0
    while clock() - start < seconds:
        count += step()
    return count / (clock() - start)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1, help="each there and back")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of a busy machine")
    given = parser.parse_args()
    target = opened("multi30k_en_de", spec_of(given.data))
    training = Training(target, torch.device("cpu"))
    vocab = training.info.vocab_size or VOCAB
    pairs = pairs_of(training, 4000)
    steps = {"bigmodel": ours(training)}
    try:
        steps["joeynmt"] = joeynmt(pairs, vocab)
    except ImportError as error:
        print(f"joeynmt is left out: {error}")
    steps["plain loop, fp32"] = plain(pairs, vocab)
    for step in steps.values():
        step()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(2 * given.rounds):
        for name in list(steps)[:: 1 if number % 2 == 0 else -1]:
            rates[name].append(turn(steps[name], given.seconds, CLOCKS[given.clock]))
            row = {"name": name, "turn": number, "target_tokens_per_s": round(rates[name][-1])}
            print(json.dumps(row), flush=True)
    print(f"bigmodel computes in {training.spec.train.precision}")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(rates["bigmodel"], found, strict=True)]
        print(
            f"{name} | {statistics.median(found):,.0f} target tokens/s | bigmodel is"
            f" {statistics.median(ratios):.2f} x as fast ({', '.join(f'{r:.2f}' for r in ratios)})"
        )


if __name__ == "__main__":
    main()
