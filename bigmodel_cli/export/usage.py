"""The script of a card: which pieces a checkpoint's own is made of, and the values in them."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.convert.sentences import sentences
from bigmodel_cli.data import (
    HEARD,
    SOURCE_TOKENIZER,
    TOKENIZER,
    Prompts,
    Reader,
    Sources,
    Tokenizer,
    input_of,
    load_source_tokenizer,
    load_tokenizer,
    prompt_tokens,
)
from bigmodel_cli.data.audio.mel import fft_size
from bigmodel_cli.errors import DataError
from bigmodel_cli.export import snippets as s
from bigmodel_cli.export.graphs import vocabulary
from bigmodel_cli.export.source import Source

ANSWERS = {
    "classification": s.ONE_OF,
    "multilabel": s.ANY_OF,
    "regression": s.NUMBERS,
    "tagging": s.EACH_TOKEN,
    "ctc": s.TRANSCRIPT,
    "masked_lm": s.LIKELIEST,
}
"""A task -> what is printed of its outputs."""
FROM_HERE = 10**9
"""For lists that are not cut."""


def code(source: Source) -> str:
    """The script after its imports."""
    if source.model.is_encoder_decoder:
        return of_pairs(source)
    if source.model.can_generate:
        return of_decoder(source)
    answer = s.VECTOR if source.headless else ANSWERS.get(source.task, s.VECTOR)
    output = "sentence_embedding" if source.headless else "logits"
    labels = s.LABELS if "labels" in answer else ""
    joint = " " if source.info.spelling == "words" else ""
    text = labels + given(source) + s.RUN + answer
    return s.filled(text, {"output": output, "joint": joint})


def frames(source: Source) -> str:
    """From a recording to frames."""
    info, sound = source.info, source.info.sound
    assert sound is not None
    values: dict[str, object] = {
        **vars(sound),
        "mean": info.mean[0] if info.mean else 0.0, "std": info.std[0] if info.std else 1.0,
        "fft": fft_size(sound), "padded": sound.padded or 0,
    }  # fmt: skip
    form = s.WHISPER if sound.features == "whisper" else s.SOUND
    end = s.FRAMES if info.frame_width is not None else s.PICTURE_OF_SOUND
    return s.filled(form + end, values)


def given(source: Source) -> str:
    """From the argument to the graph's inputs."""
    info = source.info
    if info.sound is not None:
        return frames(source)
    if info.image_shape is not None:
        channels, height, width = info.image_shape
        values = {
            "mode": "L" if channels == 1 else "RGB",
            "size": (width, height), "height": height, "width": width,
            "mean": list(info.mean or [0.0]), "std": list(info.std or [1.0]),
        }  # fmt: skip
        return s.filled(s.PICTURE, values)
    tokenizer, kind = load_tokenizer(source.assets), input_of(info)
    how = sentences(source.path)
    reader = (
        kind.whole(source.spec.data, source.assets, how.longest)
        if source.headless
        else kind.reader(source.spec.data, source.assets)
    )
    before, after = around(reader, tokenizer, "tokens")
    longest = min(how.longest or FROM_HERE, info.context or FROM_HERE)
    room = longest - len(before) - len(after)
    types = (dict(source.spec.model).get("token_types") or 0) > 1
    text = "sys.argv[1]"
    if source.headless and how.pool is not None:
        text = f"({how.prompt!r} + sys.argv[1]).strip(){'.lower()' if how.lower_case else ''}"
    around_it = {"before": before, "after": after, "room": room, "text": text}
    return s.filled(s.TEXT, around_it) + (s.TYPES if types else "")


def of_decoder(source: Source) -> str:
    """A prompt and what follows it, the likeliest token each time."""
    tokenizer = load_tokenizer(source.assets)
    reader = Prompts(tokenizer, source.model.limit, source.spec.data)
    before, _ = around(reader, tokenizer, "tokens")
    limit = min(source.model.limit, FROM_HERE)
    excluded = {"never": known(source, tokenizer.never), "stops": list(tokenizer.stops)}
    return s.filled(s.CONTINUE, {"before": before, "limit": limit, **excluded})


def of_pairs(source: Source) -> str:
    """A source and its target, the likeliest token each time."""
    tokenizer = load_tokenizer(source.assets)
    begins = prompt_tokens(tokenizer, source.spec.data.target_prompt())
    room = min(source.model.limit, source.model.max_len)
    values: dict[str, object] = {
        "stops": list(tokenizer.stops), "never": known(source, tokenizer.never),
        "never_first": known(source, tokenizer.never_first),
        "first": tokenizer.target_start, "languages": list(tokenizer.languages),
        "most": min(source.spec.task.search().max_tokens or room, room - len(begins)),
    }  # fmt: skip
    shown = ["language" if token == HEARD else str(token) for token in begins]
    start = f"[{', '.join([str(tokenizer.target_start), *shown])}]"
    read = source_text(source) if source.info.sound is None else frames(source)
    heard = s.HEARD if HEARD in begins else ""
    text = s.TRANSLATE.replace("{{start}}", start).replace("{{heard}}", heard)
    return f"{read}from tokenizers import Tokenizer\n\n{s.filled(text, values)}"


def source_text(source: Source) -> str:
    """From the argument to an encoder's tokens."""
    own = load_source_tokenizer(source.assets)
    context = source.info.context or source.model.max_len
    before, after = around(Sources(own, context), own, "source")
    there = SOURCE_TOKENIZER in source.assets
    values: dict[str, object] = {
        "before": before, "after": after, "room": context - len(before) - len(after),
        "source_tokenizer": SOURCE_TOKENIZER if there else TOKENIZER,
    }  # fmt: skip
    return s.filled(s.SOURCE, values)


def known(source: Source, tokens: Sequence[int]) -> list[int]:
    """Those of the tokens that the model has."""
    return [token for token in tokens if token < vocabulary(source)]


def around(reader: Reader, tokenizer: Tokenizer, key: str) -> tuple[list[int], list[int]]:
    """The special tokens that a reader puts before and after a text: what is around a word.

    Raises `LookupError` for a tokenizer none of whose tokens is a word that is read as itself.
    """
    for number in range(tokenizer.vocab_size):
        text = tokenizer.decode([number]).strip()
        try:
            own = tokenizer.encode(text) if text.isascii() and text.isalnum() else []
            row = reader.batch([reader.read(text, "")[0]])[key][0].tolist() if own else []
        except DataError:
            continue
        for first in range(len(row) if own else 0):
            if row[first : first + len(own)] == own:
                return row[:first], row[first + len(own) :]
    raise LookupError("no token of the vocabulary is read as itself")
