"""From an input to runs of the model: what it is fed, and what its positions are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.layers import Sides
from bigmodel_cli.attend.look import Side
from bigmodel_cli.attend.patches import patches
from bigmodel_cli.console import one_line
from bigmodel_cli.data import (
    Prompts,
    Reader,
    Tokenizer,
    input_of,
    load_source_tokenizer,
    load_tokenizer,
    target_of,
)
from bigmodel_cli.device import autocast
from bigmodel_cli.generation.conditioned import begun, source_reader, target_begins
from bigmodel_cli.generation.excluding import Excluding
from bigmodel_cli.generation.text import Decoding, longest_text, write
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.parts.watched import AttentionCall

MOST_PARTS = 4
"""Most tokens of one character: the bytes of UTF-8."""
LIKELIEST = 3
"""Next tokens that are named."""
TITLE = 60


@dataclass(frozen=True)
class Window:
    """A run of the model: the first argument's length, how to run it, and what positions are."""

    run: Callable[[], Any]
    sides: Sides
    length: int
    batch: dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """An input, ready to be run: a text longer than the context in several windows.

    `answer` puts in words what the model returned for the last of them.
    """

    title: str
    windows: list[Window]
    answer: Callable[[Any], str]
    notes: list[str] = field(default_factory=list)


def prepare(loaded: Loaded, given: str, place: str) -> Prepared:
    """What a model is run on. Raises `DataError`; `place` names the input."""
    if loaded.model.is_encoder_decoder:
        return _pair(loaded, given, place)
    kind = input_of(loaded.info)
    if not kind.in_files:
        return _text(loaded, given, place)
    reader = kind.reader(loaded.spec.data, loaded.assets)
    content, _ = reader.read(given, place)
    batch = _on(loaded, reader.batch([content]))
    side = _patches if loaded.model.grid is not None else _heard
    window = _window(loaded, batch, lambda name, call: (side(loaded, call),) * 2)
    return Prepared(one_line(Path(given).name), [window], lambda y: _labels(loaded, y, window))


def _text(loaded: Loaded, given: str, place: str) -> Prepared:
    tokenizer, options = load_tokenizer(loaded.assets), loaded.spec.data
    reader: Reader = (
        Prompts(tokenizer, loaded.model.limit, options)
        if loaded.model.can_generate
        else input_of(loaded.info).reader(options, loaded.assets)
    )
    contents, notes = reader.windows(given, place), []
    windows = [
        _window(loaded, batch, _one_side(tokens_side("text", tokenizer, batch["tokens"][0])))
        for batch in (_on(loaded, reader.batch([content])) for content in contents)
    ]
    if len(windows) > 1:
        notes.append(
            f"the text is longer than the context: it is read in {len(windows)} windows, each from"
            " its own beginning; the last is shown, and statistics are over all"
        )
    elif reader.read(given, place)[1]:
        notes.append(f"the text is cut: the model reads {reader.most}")
    answer = (
        (lambda y: _next(tokenizer, y))
        if loaded.model.can_generate
        else (lambda y: _labels(loaded, y, windows[-1]))
    )
    return Prepared(_titled(given), windows, answer, notes)


def _pair(loaded: Loaded, given: str, place: str) -> Prepared:
    """A source, and the target that the model writes for it, which is then fed to it as a whole."""
    tokenizer, model, reader = load_tokenizer(loaded.assets), loaded.model, source_reader(loaded)
    content, cut = reader.read(given, place)
    batch = _on(loaded, reader.batch([content]))
    with torch.no_grad(), autocast(loaded.device, loaded.precision):
        writer = Excluding(
            model.generator(*model.source(batch)), tokenizer.never, tokenizer.never_first
        )
        first = target_begins(loaded, tokenizer)
        start = begun(writer.model, first, 1, tokenizer.languages, loaded.device)
    how, most = Decoding(), longest_text(loaded, Decoding())
    found = write(loaded, writer, start, how, [0], most, tokenizer.stops, 0.0, None)[0][0]
    target = torch.cat((start[0], torch.tensor(found.tokens, device=start.device).long()))
    batch["target"] = target[None]
    written = tokens_side("target", tokenizer, target)
    read = "source" in batch and tokens_side(
        "source", load_source_tokenizer(loaded.assets), batch["source"][0]
    )

    def sides(name: str, call: AttentionCall) -> tuple[Side, Side]:
        source = read or _heard(loaded, call)
        if name.split(".")[0] == model.stacks[0]:
            return source, source
        return written, (source if call.memory else written)

    text = one_line(tokenizer.decode(found.tokens))
    notes = [f"the source is cut: the model reads {reader.most}"] if cut else []
    window = _window(loaded, batch, sides)
    return Prepared(_titled(given), [window], lambda y: text, notes)


def _window(loaded: Loaded, batch: dict[str, Tensor], sides: Sides) -> Window:
    def run() -> Any:
        labelled = target_of(loaded.info) is not None and loaded.task.labels
        with torch.no_grad(), autocast(loaded.device, loaded.precision):
            if labelled and not loaded.model.can_generate:
                return loaded.task.forward(loaded.model, batch, training=False)
            return loaded.model(*loaded.model.arguments(batch))

    first = next(iter(batch.values()))
    return Window(run, sides, first.shape[1], batch)


def _on(loaded: Loaded, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(loaded.device) for name, tensor in batch.items()}


def _titled(given: str) -> str:
    text = one_line(" ".join(given.split()))
    return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"


def _next(tokenizer: Tokenizer, logits: Tensor) -> str:
    """The likeliest next tokens, in words."""
    values, tokens = logits[0, -1].float().softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
    named = [name_tokens(tokenizer, [token])[0] for token in tokens.tolist()]
    pairs = zip(named, values.tolist(), strict=True)
    return "next: " + ", ".join(f"{name!r} {100 * value:.0f} %" for name, value in pairs)


def _labels(loaded: Loaded, outputs: Any, window: Window) -> str:
    """The foremost label and its probability, or the value; nothing where it has none."""
    if target_of(loaded.info) is None or not loaded.task.labels:
        return ""
    found = loaded.task.predictions(outputs, 1)[0]
    return one_line(", ".join(f"{name} {value}" for name, value in found.items()))


def _one_side(side: Side) -> Sides:
    return lambda name, call: (side, side)


def tokens_side(name: str, tokenizer: Tokenizer, tokens: Tensor) -> Side:
    """The side of tokens (T)."""
    ids = tokens.tolist()
    return Side(name, name_tokens(tokenizer, ids), ids)


def _patches(loaded: Loaded, call: AttentionCall) -> Side:
    """Patches of an image: special positions first, then row by row, then registers."""
    assert loaded.model.grid is not None
    return patches(call.k.shape[2], loaded.model.first, loaded.model.grid)


def _heard(loaded: Loaded, call: AttentionCall) -> Side:
    """Positions of a recording, named by when they begin."""
    count, sound = call.k.shape[2], loaded.info.sound
    whole = loaded.info.context or count
    assert sound is not None
    seconds = sound.hop / sound.rate * max(1, round(whole / count))
    return Side("sound", [f"{i * seconds:.2f} s" for i in range(count)], None, seconds=seconds)


def name_tokens(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The tokens' labels: text or special token; parts of one character are numbered: 漢·1/3."""
    names: list[str] = []
    while (place := len(names)) < len(tokens):
        token = tokens[place]
        if token in (tokenizer.start_of_text, tokenizer.end_of_text):
            names.append("<start>" if token == tokenizer.start_of_text and not place else "<end>")
            continue
        texts = [
            tokenizer.decode(list(tokens[place : place + count]))
            for count in range(1, MOST_PARTS + 1)
        ]
        whole = next((count for count, text in enumerate(texts, 1) if "\ufffd" not in text), 1)
        text = texts[whole - 1]
        names += (
            [text] if whole == 1 else [f"{text}·{part}/{whole}" for part in range(1, whole + 1)]
        )
    return names
