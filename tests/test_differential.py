"""Random specs: what is written and scored alone = beside neighbours, cached = uncached, padded on
the left and on the right.

The references are written anew: plain loops over whole sequences of one row, without a cache,
without padding, with a search over Python lists. Weights are in double precision, so that nothing
but a fault makes a difference.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.generation.sampling import Sampling, generate
from bigmodel_cli.models.decoder import Decoder, DecoderOptions
from bigmodel_cli.models.encoder import Encoder, EncoderOptions
from bigmodel_cli.models.seq2seq import Seq2Seq, Seq2SeqOptions

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

VOCAB, STOP = 11, 3
CHUNK = 25  # specs in a test
POSITIONS: list[dict[str, Any]] = [
    {"type": "none"},
    {"type": "rotary"},
    {"type": "rotary", "fraction": 0.5, "base": 100.0},
    {"type": "alibi"},
    {"type": "t5", "buckets": 6, "max_distance": 12},
]
Row = list[int]


def mixer(rng: random.Random, causal: bool) -> dict[str, Any]:
    """One of the mixers with random options; those with a state only where positions follow one
    another.
    """
    kinds = ["attention", "attention", "differential"]
    kind = rng.choice(
        [*kinds, "mla", "mamba2", "gated_deltanet", "convolution", "retention"] if causal else kinds
    )
    own: dict[str, dict[str, Any]] = {
        "attention": {
            "num_heads": 4,
            "kv_heads": rng.choice([1, 2, 4]),
            "window": rng.choice([None, None, 3, 6]),
            "position": rng.choice(POSITIONS),
            "sinks": rng.random() < 0.3,
            "qk_norm": rng.random() < 0.3,
            "softcap": rng.choice([None, 5.0]),
        },
        "differential": {"num_heads": 2, "position": rng.choice(POSITIONS[:2])},
        "mla": {"num_heads": 2, "kv_rank": 6, "rotary_dim": 4},
        "mamba2": {
            "state": 4,
            "head_dim": 8,
            "chunk": rng.randint(2, 9),
            "kernel": rng.randint(2, 4),
        },
        "gated_deltanet": {"num_heads": 2, "chunk": rng.randint(2, 9)},
        "convolution": {"kernel": rng.randint(2, 5)},
        "retention": {"num_heads": 2, "chunk": rng.randint(2, 9)},
    }
    return {"type": kind, **own[kind]}


def blocks(rng: random.Random, causal: bool = True, cross: bool = False) -> list[dict[str, Any]]:
    """One or two random blocks."""
    ffns: list[Any] = [
        None,
        {"type": "gelu"},
        {"type": "swiglu"},
        {"type": "moe", "experts": 3, "top_k": rng.randint(1, 2), "hidden": 8},
    ]
    return [
        {
            "mixer": mixer(rng, causal),
            "ffn": rng.choice(ffns),
            "norm": {"type": rng.choice(["layernorm", "rmsnorm"])},
            "placement": rng.choice(["pre", "post", "sandwich", "after"]),
            **({"cross": {"num_heads": rng.choice([1, 4])}} if cross else {}),
        }
        for _ in range(rng.randint(1, 2))
    ]


def whole(rng: random.Random, limit: int, cross: bool = False) -> dict[str, Any]:
    """What decoders, encoders and encoder-decoders have in common."""
    position = {"type": rng.choice(["none", "learned", "sinusoidal"])}
    return {"dim": 16, "position": position, "max_len": limit, "vocab_size": VOCAB}


def drawn_weights(model: Any, seed: int) -> Any:
    """The model in double precision, evaluating, with weights that make its choices differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 or name.endswith("sinks"):
                p.normal_(std=0.4)
    return model.double().eval()


def tokens(rng: random.Random, count: int) -> Row:
    """So many random tokens."""
    return [rng.randrange(VOCAB) for _ in range(count)]


def padded_left(rows: list[Row], rng: random.Random) -> tuple[Tensor, Tensor]:
    """(B, T) with anything before shorter rows, and which of it is real."""
    longest = max(map(len, rows))
    batch = torch.tensor([tokens(rng, longest - len(row)) + row for row in rows])
    return batch, torch.tensor([[i >= longest - len(row) for i in range(longest)] for row in rows])


def window(text: Row, prompt: int, limit: int) -> Row:
    """What a decoder looks at, `prompt` tokens having been given: at most `limit`; when full, its
    later half and the newest.
    """
    seen = min(prompt, limit)
    for _ in range(len(text) - prompt):
        seen = seen + 1 if seen < limit else limit // 2 + 1
    return text[len(text) - seen :]


def log_probabilities(model: Any, text: Row) -> list[float]:
    """Of the token after this text, by one pass over it."""
    with torch.no_grad():
        values: list[float] = model(torch.tensor([text]))[0, -1].float().log_softmax(-1).tolist()
    return values


def continued(foretell: Any, sampling: Sampling, draws: list[float], most: int) -> Row:
    """Greedy or drawn text, token by token: the likeliest, or where the number falls among the
    likely in the order of tokens.
    """
    text: Row = []
    for number in range(most):
        logs = foretell(text)
        ranked = sorted(range(VOCAB), key=lambda t: (-logs[t], t))
        if sampling.temperature == 0:
            text.append(ranked[0])
        else:
            weights = {
                t: math.exp(logs[t] / sampling.temperature)
                for t in ranked[: sampling.top_k or VOCAB]
            }
            total, reached, nucleus = sum(weights.values()), 0.0, []
            for token in weights:
                if reached / total >= sampling.top_p:
                    break
                nucleus.append(token)
                reached += weights[token]
            best = weights[nucleus[0]]
            likely = sorted(t for t in nucleus if weights[t] >= sampling.min_p * best)
            place, reached = draws[number] * sum(weights[t] for t in likely), 0.0
            for token in likely:
                reached += weights[token]
                if place < reached:
                    break
            text.append(token)
        if text[-1] == STOP:
            break
    return text


def searched(foretell: Any, beam: Beam, most: int) -> list[tuple[Row, float, bool]]:
    """Beam search over lists: (text, score, whether it ended), the best first."""
    going: list[tuple[float, Row]] = [(0.0, [])]
    found: list[tuple[Row, float, bool]] = []
    for length in range(1, most + 1):
        norm = ((5 + length) / 6) ** beam.length_penalty
        grown = [
            (total + log, [*text, t])
            for total, text in going
            for t, log in enumerate(foretell(text))
        ]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beam.width]
        ended = [
            (text[:-1], total / norm, True)
            for total, text in grown[: beam.width]
            if text[-1] == STOP
        ]
        going = [(total, text) for total, text in grown if text[-1] != STOP][: beam.width]
        if length == most:
            ended += [(text, total / norm, False) for total, text in going]
        found = sorted([*found, *ended], key=lambda h: -h[1])[: beam.width]
        if len(found) == beam.width and (not going or going[0][0] / norm <= found[-1][1]):
            break
    return found


def check(
    rng: random.Random, model: Any, batch: Tensor, real: Tensor | None, foretell: Any, most: int
) -> None:
    """Write after each row of the batch in one of three ways, and compare with the plain loops."""
    count = len(batch)
    way = rng.choice(["greedy", "drawn", "beam"])
    if way == "beam":
        beam = Beam(rng.randint(1, 3), rng.choice([0.0, 0.6, 1.0]))
        together = beam_search(model, batch, beam, max_new_tokens=most, stop=STOP, real=real)
        for i, hypotheses in enumerate(together):
            want = searched(lambda text, i=i: foretell(i, text), beam, most)
            assert [(h.tokens, h.ended) for h in hypotheses] == [
                (text, ended) for text, _, ended in want
            ]
            assert [h.score for h in hypotheses] == pytest.approx(
                [score for _, score, _ in want], abs=1e-5
            )
        return
    sampling = Sampling(0.0)
    if way == "drawn":
        sampling = Sampling(
            rng.choice([0.3, 1.0, 1.7]),
            rng.choice([0, 1, 4]),
            rng.choice([1.0, 0.7]),
            rng.choice([0.0, 0.2]),
        )
    draws = torch.rand(count, most, generator=torch.Generator().manual_seed(rng.randrange(10**6)))
    steps = list(
        generate(model, batch, sampling, max_new_tokens=most, draws=draws, stop=STOP, real=real)
    )
    for i, row in enumerate(torch.stack(steps, 1).tolist()):
        text = row[: row.index(STOP) + 1] if STOP in row else row
        assert text == continued(
            lambda text, i=i: foretell(i, text), sampling, draws[i].tolist(), most
        )


def decoder_case(seed: int) -> None:
    """Ragged prompts, some longer than the model's maximum length; generation goes beyond."""
    rng = random.Random(seed)
    limit = rng.randint(4, 9)
    options = {"type": "decoder", **whole(rng, limit), "blocks": blocks(rng)}
    model = drawn_weights(Decoder(DecoderOptions.model_validate(options), DatasetInfo()), seed)
    prompts = [tokens(rng, rng.choice([1, 2, limit - 1, limit, limit + 3])) for _ in range(3)]
    batch, real = padded_left(prompts, rng)
    even = bool(real.all())

    def foretell(i: int, text: Row) -> list[float]:
        return log_probabilities(model, window([*prompts[i], *text], len(prompts[i]), model.limit))

    check(rng, model, batch, None if even else real, foretell, rng.randint(4, 10))
    scored = [row[-min(limit, model.limit) :] for row in prompts]
    batch, real = padded_left(scored, rng)
    with torch.no_grad():
        logits = model(batch, segments=real.long())
        for i, row in enumerate(scored):
            torch.testing.assert_close(
                logits[i, batch.shape[1] - len(row) :], model(torch.tensor([row]))[0]
            )
            right = torch.tensor([row + tokens(rng, limit - len(row))])
            torch.testing.assert_close(model(right)[0, : len(row)], model(torch.tensor([row]))[0])


def encoder_decoder_case(seed: int) -> None:
    """Sources of different lengths, padded on the right."""
    rng = random.Random(seed)
    limit = rng.randint(5, 9)
    sides = {"encoder": blocks(rng, causal=False), "decoder": blocks(rng, cross=True)}
    options = {
        "type": "seq2seq",
        **whole(rng, limit),
        **sides,
        "share_embeddings": rng.random() < 0.5,
    }
    model = drawn_weights(Seq2Seq(Seq2SeqOptions.model_validate(options), DatasetInfo()), seed)
    sources = [tokens(rng, rng.randint(1, limit)) for _ in range(3)]
    longest = max(map(len, sources))
    batch = torch.tensor([row + [-1] * (longest - len(row)) for row in sources])

    def foretell(i: int, text: Row) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([sources[i]]), torch.tensor([[STOP, *text]]))[0, -1]
        values: list[float] = logits.float().log_softmax(-1).tolist()
        return values

    check(rng, model.generator(batch), torch.full((3, 1), STOP), None, foretell, limit)


def encoder_case(seed: int) -> None:
    """Logits of tokens or of labels, padded on the right."""
    rng = random.Random(seed)
    limit = rng.randint(5, 9)
    options = {"type": "encoder", **whole(rng, limit), "blocks": blocks(rng, causal=False)}
    options |= {"pool": rng.choice(["cls", "mean"]), "pooler": rng.random() < 0.5}
    info = DatasetInfo(classes=("a", "b", "c") if rng.random() < 0.5 else ())
    model = drawn_weights(Encoder(EncoderOptions.model_validate(options), info), seed)
    rows = [tokens(rng, rng.randint(1, limit)) for _ in range(4)]
    batch = torch.tensor([row + [-1] * (limit - len(row)) for row in rows])
    with torch.no_grad():
        together = model(batch)
        for i, row in enumerate(rows):
            own = together[i] if info.classes else together[i, : len(row)]
            torch.testing.assert_close(own, model(torch.tensor([row]))[0])


CASES = (decoder_case, decoder_case, decoder_case, encoder_decoder_case, encoder_case)


def run(first: int) -> None:
    """The cases of so many seeds."""
    for seed in range(first, first + CHUNK):
        try:
            CASES[seed % len(CASES)](seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("first", range(0, 4 * CHUNK, CHUNK))
def test_generation_does_not_depend_on_neighbours_caches_or_padding(first: int) -> None:
    run(first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4 * CHUNK, 60 * CHUNK, CHUNK))
def test_generation_does_not_depend_on_them_in_many_more_specs(first: int) -> None:
    run(first)
