"""The script of a card: which pieces a checkpoint's own is made of, and the values in them."""

from __future__ import annotations

from bigmodel_cli.convert.sentences import sentences
from bigmodel_cli.data import (
    SOURCE_TOKENIZER,
    TOKENIZER,
    Prompts,
    Reader,
    Sources,
    Tokenizer,
    input_of,
    load_source_tokenizer,
    load_tokenizer,
)
from bigmodel_cli.data.audio.mel import fft_size
from bigmodel_cli.errors import DataError
from bigmodel_cli.export import snippets as s
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


def given(source: Source) -> str:
    """From the argument to the graph's inputs."""
    info = source.info
    if info.sound is not None:
        sound = info.sound
        moments = {"mean": info.mean[0] if info.mean else 0.0, "std": (*info.std, 1.0)[0]}
        fft = {"fft": fft_size(sound)}
        text = s.SOUND + (s.FRAMES if info.frame_width is not None else s.PICTURE_OF_SOUND)
        return s.filled(text, {**vars(sound), **moments, **fft})
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
    tokens = {"before": before, "after": after, "room": room}
    return s.filled(s.TEXT, tokens) + (s.TYPES if types else "")


def of_decoder(source: Source) -> str:
    """A prompt and what follows it, the likeliest token each time."""
    tokenizer = load_tokenizer(source.assets)
    reader = Prompts(tokenizer, source.model.limit, source.spec.data)
    before, _ = around(reader, tokenizer, "tokens")
    return s.filled(s.CONTINUE, {"before": before, "stops": list(tokenizer.stops)})


def of_pairs(source: Source) -> str:
    """A source and its target, the likeliest token each time."""
    tokenizer, own = load_tokenizer(source.assets), load_source_tokenizer(source.assets)
    context = source.info.context or source.model.max_len
    before, after = around(Sources(own, context), own, "source")
    values: dict[str, object] = {
        "before": before, "after": after, "room": context - len(before) - len(after),
        "start": tokenizer.target_start, "stops": list(tokenizer.stops),
        "never": list(tokenizer.never), "most": context - 1,
        "source_tokenizer": SOURCE_TOKENIZER if SOURCE_TOKENIZER in source.assets else TOKENIZER,
    }  # fmt: skip
    return s.filled(s.TRANSLATE, values)


def around(reader: Reader, tokenizer: Tokenizer, key: str) -> tuple[list[int], list[int]]:
    """The special tokens that a reader puts before and after a text: what is around a word."""
    for number in range(min(1000, tokenizer.vocab_size)):
        text = tokenizer.decode([number]).strip()
        try:
            own = tokenizer.encode(text) if text.isascii() and text.isalnum() else []
            row = reader.batch([reader.read(text, "")[0]])[key][0].tolist() if own else []
        except DataError:
            continue
        for first in range(len(row) if own else 0):
            if row[first : first + len(own)] == own:
                return row[:first], row[first + len(own) :]
    return [], []
