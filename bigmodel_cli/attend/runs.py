"""From an input to runs of the model: what it is fed, and what its positions are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.layers import Sides
from bigmodel_cli.attend.look import Side, Told
from bigmodel_cli.attend.pairs import alignment_of, checked, read_pair
from bigmodel_cli.attend.patches import patches
from bigmodel_cli.attend.spoken import ctc_times, heard_of, seconds_of, times_of
from bigmodel_cli.console import one_line
from bigmodel_cli.data import (
    LongReader,
    Prompts,
    Tokenizer,
    input_of,
    load_source_tokenizer,
    load_tokenizer,
    target_of,
)
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import SpecError
from bigmodel_cli.generation.text import Decoding
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import wide
from bigmodel_cli.parts.watched import Called
from bigmodel_cli.predict import as_published
from bigmodel_cli.tasks.ctc import text_of

MOST_PARTS = 4
"""Most tokens of one character: the bytes of UTF-8."""
LIKELIEST = 3
"""Next tokens that are named."""
TITLE = 60


@dataclass(frozen=True)
class Window:
    """A run of the model: the first argument's length, how to run it, and what positions are.

    `answered` are those of the outputs, where layers look from other sides too.
    """

    run: Callable[[], Any]
    sides: Sides
    length: int
    batch: dict[str, Tensor]
    answered: Side | None = None


@dataclass(frozen=True)
class Prepared:
    """An input, ready to be run: a text longer than the context in several windows.

    `answer` puts in words what the model returned for the last of them, `remarks` are notes on it,
    `told` says which words come from which, or when they are said (`Look.told`), and `part` which
    window is shown (`Look.part`).
    """

    title: str
    windows: list[Window]
    answer: Callable[[Any], str]
    notes: list[str] = field(default_factory=list)
    remarks: Callable[[Any], list[str]] = lambda outputs: []
    told: Callable[[Any], Told] = lambda outputs: Told()
    part: str = ""


def prepare(loaded: Loaded, given: str, place: str, target: str | None = None) -> Prepared:
    """What a model is run on. Raises `DataError`; `place` names the input.

    `target` is the text that an encoder-decoder is to have written; the one of its own search when
    None.
    """
    if loaded.model.is_encoder_decoder:
        return _pair(loaded, given, place, target)
    if target is not None:
        raise SpecError(
            "--target is for models that read a source and write a target; leave it out"
        )
    kind = input_of(loaded.info)
    if not kind.in_files:
        return _text(loaded, given, place)
    reader = kind.reader(loaded.spec.data, loaded.assets)
    content, _ = reader.read(given, place)
    batch = _on(loaded, reader.batch([content]))
    side = _patches(loaded) if loaded.model.grid is not None else _heard(loaded, batch)
    window = _window(loaded, batch, lambda name, call: (side(call),) * 2)
    if _spelled(loaded):
        return _transcribed(loaded, given, window)
    return Prepared(one_line(Path(given).name), [window], lambda y: _labels(loaded, y, window))


def _text(loaded: Loaded, given: str, place: str) -> Prepared:
    tokenizer, options = load_tokenizer(loaded.assets), loaded.spec.data
    reader: LongReader = (
        Prompts(tokenizer, loaded.model.limit, options)
        if loaded.model.can_generate
        else input_of(loaded.info).reader(options, loaded.assets)
    )
    contents, notes = reader.windows(given, place), []
    windows = [
        _window(loaded, batch, _one_side(tokens_side("text", tokenizer, batch["tokens"][0])))
        for batch in (_on(loaded, reader.batch([content])) for content in contents)
    ]
    part = ""
    if len(windows) > 1:
        shown = titled("".join(name_tokens(tokenizer, windows[-1].batch["tokens"][0].tolist())))
        part = f"window {len(windows)} of {len(windows)}: “{shown}”"
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
    return Prepared(titled(given), windows, answer, notes, part=part)


def _pair(loaded: Loaded, given: str, place: str, target: str | None) -> Prepared:
    """A source, and the target that the model writes for it, which is then fed to it as a whole."""
    how = as_published(loaded, Decoding())
    pair = read_pair(loaded, given, place, how, target)
    written = tokens_side("target", pair.tokenizer, pair.batch["target"][0, :-1])
    spoken = "source" not in pair.batch
    if spoken:
        read = _heard(loaded, pair.batch)
    else:
        tokens = pair.batch["source"][0]
        text = tokens_side("source", load_source_tokenizer(loaded.assets), tokens)
        read = lambda call: text  # noqa: E731

    def sides(name: str, call: Called) -> tuple[Side, Side]:
        source = read(call)
        if name.split(".")[0] == loaded.model.stacks[0]:
            return source, source
        return written, (source if call.memory else written)

    def told(logits: Tensor) -> Told:
        if not spoken:
            return Told(alignment_of(pair))
        heard = heard_of(loaded, pair.batch["frames"], pair.heard)
        return Told(times=times_of(pair), heard=heard)

    window = Window(pair.run, sides, len(written), pair.batch, written)
    said, notes = one_line(pair.text), [pair.cut] if pair.cut else []
    remarks = lambda logits: [checked(pair, logits)]  # noqa: E731
    return Prepared(titled(given), [window], lambda y: said, notes, remarks, told)


def _transcribed(loaded: Loaded, given: str, window: Window) -> Prepared:
    """A recording that a CTC model writes down."""

    def written(outputs: tuple[Tensor, Tensor]) -> str:
        logits, lengths = outputs
        return one_line(text_of(logits, lengths, loaded.info.classes, loaded.info.spelling)[0])

    def told(outputs: tuple[Tensor, Tensor]) -> Told:
        logits, lengths = outputs
        times = ctc_times(loaded, logits, lengths, window.length)
        return Told(times=times, heard=heard_of(loaded, window.batch["frames"]))

    return Prepared(one_line(Path(given).name), [window], written, told=told)


def _spelled(loaded: Loaded) -> bool:
    """Whether the model writes a transcript down unit by unit."""
    target = target_of(loaded.info)
    return target is not None and target.spelled and not loaded.model.can_generate


def _window(loaded: Loaded, batch: dict[str, Tensor], sides: Sides) -> Window:
    def run() -> Any:
        labelled = target_of(loaded.info) is not None and loaded.task.labels
        with torch.no_grad(), autocast(loaded.device, loaded.precision), wide():
            if _spelled(loaded) or (labelled and not loaded.model.can_generate):
                task = loaded.task.of_one_pass()
                return task.forward(loaded.model, batch, training=False)
            return loaded.model(*loaded.model.arguments(batch))

    first = next(iter(batch.values()))
    return Window(run, sides, first.shape[1], batch)


def _on(loaded: Loaded, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(loaded.device) for name, tensor in batch.items()}


def titled(given: str) -> str:
    """The beginning of an input, on one line."""
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
    if loaded.headless or target_of(loaded.info) is None or not loaded.task.labels:
        return ""
    _, name, value = loaded.task.foremost(outputs)
    said = f"{100 * value:.1f} %" if loaded.task.of_probability else f"{value:.6g}"
    return one_line(f"{name} {said}")


def _one_side(side: Side) -> Sides:
    return lambda name, call: (side, side)


def tokens_side(name: str, tokenizer: Tokenizer, tokens: Tensor) -> Side:
    """The side of tokens (T)."""
    ids = tokens.tolist()
    return Side(name, name_tokens(tokenizer, ids), ids)


def _patches(loaded: Loaded) -> Callable[[Called], Side]:
    """Patches of an image: special positions first, then row by row, then registers."""
    assert loaded.model.grid is not None
    grid, first = loaded.model.grid, loaded.model.first
    return lambda call: patches(call.keys, first, grid)


def _heard(loaded: Loaded, batch: dict[str, Tensor]) -> Callable[[Called], Side]:
    """Positions of a recording, named by when they begin."""
    frames = batch["frames"].shape[1] if "frames" in batch else batch["image"].shape[-1]

    def side(call: Called) -> Side:
        count = call.keys
        seconds = seconds_of(loaded, frames, count)
        return Side("sound", [f"{i * seconds:.2f} s" for i in range(count)], None, seconds=seconds)

    return side


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
