"""Encoder-decoders: a source, the target that the search writes for it, and one pass over both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigmodel_cli.attend.alignment import READS, WRITES, Alignment, Reading, aligned
from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.layers import sizes_of
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.attend.tiles import Tiled
from bigmodel_cli.attend.words import Word, words_of
from bigmodel_cli.data import Reader, Sources, Tokenizer, load_source_tokenizer, load_tokenizer
from bigmodel_cli.device import autocast, full_precision
from bigmodel_cli.errors import DataError
from bigmodel_cli.generation.conditioned import begun, source_reader, target_begins
from bigmodel_cli.generation.excluding import Excluding
from bigmodel_cli.generation.text import Decoding, longest_text, write
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import wide
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.kernels import attend
from bigmodel_cli.parts.watched import AttentionCall

MOST_HIDDEN = 100
"""Most words of a source that are hidden in turn."""
LOGITS = 1 << 25
"""Logits that are computed at once while words are hidden."""
EQUAL = 1e-4
"""Nats by which the pass may differ from the search in fp32."""


@dataclass(frozen=True)
class Pair:
    """A source and a target for one pass of the model, and how the target came about.

    The batch's "target" (1, T + 1) are `begins` tokens that the data begins with, the `tokens`, and
    the end where the text has `ended`. `nats` is the search's summed log-probability of the tokens
    and that end; None where there was no search: `how` says what there was.
    """

    loaded: Loaded
    batch: dict[str, Tensor]
    begins: int
    tokens: list[int]
    ended: bool
    nats: float | None
    how: str
    cut: str = ""
    heard: float | None = None
    """Seconds of the recording, without silence that is added behind it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's."""
        return load_tokenizer(self.loaded.assets)

    @property
    def inputs(self) -> list[int]:
        """The target's tokens that the decoder reads."""
        read: list[int] = self.batch["target"][0, :-1].tolist()
        return read

    @property
    def text(self) -> str:
        """What the target says."""
        return self.tokenizer.decode(self.tokens)

    def words(self) -> list[Word]:
        """Those of the target's tokens."""
        return words_of(self.tokenizer, self.tokens)

    def source_words(self) -> list[Word]:
        """Those of the source, where it is a text."""
        tokens = self.batch["source"][0].tolist()
        return words_of(load_source_tokenizer(self.loaded.assets), tokens)

    def run(self) -> Tensor:
        """(1, T, V)   the logits after each of the decoder's inputs."""
        return forced(self.loaded, self.batch)


def forced(loaded: Loaded, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, V)   the logits of targets that are fed as a whole."""
    with torch.no_grad(), autocast(loaded.device, loaded.precision), wide():
        y: Tensor = loaded.task.forward(loaded.model, batch, training=False)
    return y


def read_pair(
    loaded: Loaded,
    given: str,
    place: str,
    decoding: Decoding | None = None,
    target: str | None = None,
) -> Pair:
    """A source as it is given, with this target, or else the one that the model writes.

    It is written as `predict` writes it, with `decoding`. Raises `DataError` for a source or target
    that cannot be read.
    """
    reader: Reader = source_reader(loaded)
    content, cut = reader.read(given, place)
    batch = {name: x.to(loaded.device) for name, x in reader.batch([content]).items()}
    tokenizer, sound = load_tokenizer(loaded.assets), loaded.info.sound
    first = target_begins(loaded, tokenizer)
    with torch.no_grad(), autocast(loaded.device, loaded.precision), wide():
        source = loaded.model.source(batch)
        writer = Excluding(loaded.model.generator(*source), tokenizer.never, tokenizer.never_first)
        start = begun(writer.model, first, 1, tokenizer.languages, loaded.device)
    how = decoding or Decoding()
    if target is not None:  # the limit of searches is not one of texts that are given
        room = loaded.model.max_len + 1 - len(first)
        tokens, ended, nats, said = _given(tokenizer, target, room), True, None, "given"
    else:
        most = longest_text(loaded, how)
        found = write(loaded, writer, start, how, [0], most, tokenizer.stops, 0.0, None)[0][0]
        beam, nats = how.search(loaded.spec.task.search()), found.log_probability
        said = "greedy" if beam is None else f"best of {beam.width} beams"
        tokens, ended = [int(token) for token in found.tokens], found.ended
    end = [tokenizer.end_of_text] if ended else []  # there may be no room for one
    row = [*start[0].tolist(), *tokens, *end]
    batch["target"] = torch.tensor([row], device=loaded.device)
    note = f"the source is cut: the model reads {reader.most}" if cut else ""
    heard = None if sound is None else len(content.values) / sound.rate
    return Pair(loaded, batch, len(first), tokens, ended, nats, said, note, heard)


def _given(tokenizer: Tokenizer, target: str, most: int) -> list[int]:
    tokens, cut = Sources(tokenizer, most).read(target, "--target")
    if cut:
        raise DataError(
            f"--target: the model has room for {most:,} tokens, the end included; give a shorter"
            " text"
        )
    return tokens[:-1]


def token_nats(pair: Pair, logits: Tensor) -> Tensor:
    """logits (B, T, V) -> (B, N)   log-probabilities of the tokens, and of the end if it is there.

    Tokens that are never written have none, as in the search (`Excluding`).
    """
    tokenizer, first = pair.tokenizer, pair.begins - 1
    logs = logits[:, first:].float().clone()
    for rows, never in (
        (slice(0, None), tokenizer.never),
        (slice(0, 1), (*tokenizer.never, *tokenizer.never_first)),
    ):
        there = [token for token in never if token < logs.shape[-1]]
        logs[:, rows, there] = float("-inf")
    wanted = pair.batch["target"][:, pair.begins :].expand(len(logs), -1)
    found: Tensor = logs.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    return found


def checked(pair: Pair, logits: Tensor) -> str:
    """A sentence on whether the pass gives what the search had."""
    nats = token_nats(pair, logits)[0]
    total = float(nats.double().sum())
    said = f"the target is {pair.how}: {total:.4f} nats in one pass over it"
    if pair.nats is not None:
        said += f", {abs(total - pair.nats):.1e} from the search's sum"
        if abs(total - pair.nats) > EQUAL and pair.loaded.precision == "fp32":
            said += ": more than rounding; the search may have read the text in pieces"
    elif pair.how == "greedy":
        first = logits[0, pair.begins - 1 :]
        other = sum(
            int(row.argmax()) != token for row, token in zip(first, pair.tokens, strict=False)
        )
        if other:
            said += f"; {other} of its tokens are not the likeliest there"
    return said


def crossings(pair: Pair) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """(name, weights (H, T, S), lengths of values (H, S) where defined) of each cross-attention.

    They are made in a pass of the model of their own, and come one after the other when it is over.
    """
    found: list[tuple[str, Tensor, Tensor | None]] = []

    def each(name: str, part: Attends, call: AttentionCall) -> None:
        if call.memory:
            with full_precision(call.q.device):  # the model runs in its own
                found.append((name, dense(Stream(call)), sizes_of(part, call)))

    with watch(pair.loaded.model, each):
        pair.run()
    yield from found


def dense(tiled: Tiled) -> Tensor:
    """(H, T, S)   the weights themselves."""
    whole = torch.zeros(tiled.heads, tiled.queries, tiled.keys)
    for rows, heads, keys, tile in tiled.walk():
        whole[heads, int(rows[0]) : int(rows[-1]) + 1, keys] = tile.to(whole)
    return whole


def shares(weights: Tensor, sizes: Tensor | None) -> Tensor:
    """(H, T, S), (H, S) -> (T, S)   |weight| x length of the value, heads together, as shares."""
    moved = weights.abs() if sizes is None else weights.abs() * sizes[:, None].to(weights)
    total = moved.sum(0)
    return total / total.sum(-1, keepdim=True).clamp(min=1e-30)


def readings(pair: Pair) -> list[Reading]:
    """The two readings of each layer."""
    found, count = [], len(pair.tokens)
    for name, weights, sizes in crossings(pair):
        whole = shares(weights, sizes)
        written, read = whole[pair.begins - 1 :][:count], whole[pair.begins :][:count]
        if len(read) < count:  # the last token of a text without an end is not read
            read = torch.cat((read, written[-1:]))
        found += [Reading(name, WRITES, written), Reading(name, READS, read)]
    return found


def hidden_effect(pair: Pair, source: Sequence[Word]) -> Tensor | None:
    """(N, Ws)   nats that each token loses where each source word is hidden from cross-attention.

    Special tokens are not hidden: NaN. None where the source has too many words for it.
    """
    chosen = [number for number, word in enumerate(source) if not word.special]
    if not 0 < len(chosen) <= MOST_HIDDEN:
        return None
    count, logits = len(pair.tokens), pair.run()
    before = token_nats(pair, logits)[0, :count]
    lost = torch.full((count, len(source)), float("nan"), device=before.device)
    step = max(1, LOGITS // logits[0].numel())
    for start in range(0, len(chosen), step):
        some = chosen[start : start + step]
        mask = torch.ones(len(some), pair.batch["source"].shape[1], dtype=torch.bool)
        for row, number in enumerate(some):
            mask[row, source[number].first : source[number].stop] = False
        hidden = _without(pair, mask.to(before.device))
        lost[:, some] = (before - hidden[:, :count]).T
    return lost.cpu()


def _without(pair: Pair, mask: Tensor) -> Tensor:
    """mask (B, S), False where a source position is hidden -> (B, N) as `token_nats`."""

    def each(name: str, part: Attends, call: AttentionCall) -> Tensor | None:
        if not call.memory:
            return None
        seen = mask if call.key_mask is None else mask & call.key_mask.bool()
        rules = {"segments": call.segments, "bias": call.bias, "sinks": call.sinks}
        return attend(call.q, call.k, call.v, call.spec, key_mask=seen, **rules)

    batch = {n: x.expand(len(mask), *x.shape[1:]) for n, x in pair.batch.items()}
    with watch(pair.loaded.model, each):
        return token_nats(pair, forced(pair.loaded, batch))


def alignment_of(pair: Pair) -> Alignment | None:
    """Which words of the source the target's words come from; None where nothing was written."""
    source, target = pair.source_words(), pair.words()
    if not target:
        return None
    return aligned(readings(pair), source, target, hidden_effect(pair, source))
