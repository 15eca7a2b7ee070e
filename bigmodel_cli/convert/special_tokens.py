"""Which tokens begin, end and pad a text, by a folder's files rather than by their usual names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.data import read_tokenizer
from bigmodel_cli.errors import CheckpointError

Values = Mapping[str, Any]
BEGIN, END = ("bos_token", "cls_token"), ("eos_token", "sep_token")
OTHERS = ("pad_token", "unk_token", "mask_token")
TIME = re.compile(r"<\|\d+\.\d+\|>")
"""A time, which Whisper may write between words."""


def special_tokens(tokenizer: bytes, files: tuple[Values, ...], folder: str) -> bytes:
    """The content of special_tokens.json.

    By the values in config.json, tokenizer_config.json, special_tokens_map.json and
    generation_config.json, which are empty where there is no such file. Text ends with the
    tokenizer's token, which training writes; generation also stops at any of
    generation_config.json's. Raises `CheckpointError`.
    """
    config, own, named, generation = files
    numbers = _numbers(tokenizer)

    def token(names: tuple[str, ...]) -> int | None:
        for name in names:
            for values in (own, named):
                if (text := _text(values.get(name))) is not None:
                    if text not in numbers:
                        raise CheckpointError(
                            f"{folder}: {name} is {text[:40]!r}, which tokenizer.json does not have"
                        )
                    return numbers[text]
        for name in names:
            for values in (generation, config):
                if ids := _ids(values.get(f"{name}_id"), f"{folder}: {name}_id"):
                    return ids[0]
        return None

    begin, end = token(BEGIN), token(END)
    stops = _ids(generation.get("eos_token_id"), f"{folder}: generation_config.json: eos_token_id")
    stops = stops or _ids(config.get("eos_token_id"), f"{folder}: config.json: eos_token_id")
    found = {
        "start": begin,
        "end": end,
        "stops": sorted({*stops, *([] if end is None else [end])}),
        "begins": begin is not None and _begins(tokenizer, own, begin),
        "target_start": _target_start(config, generation, folder),
        "never": _never(config, generation, folder),
        **_pair(tokenizer, end),
        "names": _names(own, named),
        **_of_speech(config, generation, folder),
        "silent": sorted(n for text, n in numbers.items() if TIME.fullmatch(text)),
        **{name.removesuffix("_token"): token((name,)) for name in OTHERS},
    }
    return json.dumps(found).encode()


def _target_start(config: Values, generation: Values, folder: str) -> int | None:
    """The token with which an encoder-decoder's target begins: T5's, which is not named, is pad."""
    pad = config.get("pad_token_id") if config.get("is_encoder_decoder") is True else None
    named = (generation.get("decoder_start_token_id"), config.get("decoder_start_token_id"), pad)
    for number in named:
        if ids := _ids(number, f"{folder}: decoder_start_token_id"):
            return ids[0]
    return None


def _of_speech(config: Values, generation: Values, folder: str) -> dict[str, list[int]]:
    """Tokens with which no text begins, and those of languages. Raises `CheckpointError`."""
    if config.get("is_encoder_decoder") is not True:
        return {}
    first = (generation or config).get("begin_suppress_tokens")
    languages = generation.get("lang_to_id")
    languages = [*languages.values()] if isinstance(languages, dict) else None
    return {
        "never_first": _ids(first, f"{folder}: begin_suppress_tokens"),
        "languages": _ids(languages, f"{folder}: lang_to_id"),
    }


def _never(config: Values, generation: Values, folder: str) -> list[int]:
    """The single tokens that generation leaves out. Raises `CheckpointError`."""
    suppressed = (generation or config).get("suppress_tokens")
    found = set(_ids(suppressed, f"{folder}: suppress_tokens"))
    for values in (generation, config):
        words = values.get("bad_words_ids")
        if isinstance(words, list):
            lists = [_ids(word, f"{folder}: bad_words_ids") for word in words]
            return sorted(found | {ids[0] for ids in lists if len(ids) == 1})
    return sorted(found)


def _numbers(tokenizer: bytes) -> dict[str, int]:
    """Each token's number. Raises `CheckpointError` where it is not a tokenizer."""
    read_tokenizer(tokenizer, "tokenizer.json", CheckpointError)  # tried, and its faults told
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(tokenizer.decode("utf-8")).get_vocab(with_added_tokens=True)
    return {str(text): int(number) for text, number in found.items()}


def _begins(tokenizer: bytes, own: Values, begin: int) -> bool:
    """Whether a text for the model begins with the token."""
    if isinstance(own.get("add_bos_token"), bool):
        return bool(own["add_bos_token"])
    from tokenizers import Tokenizer

    return bool(Tokenizer.from_str(tokenizer.decode("utf-8")).encode("a").ids[:1] == [begin])


def _names(own: Values, named: Values) -> dict[str, str]:
    """The texts of all special tokens that the files name, as chat templates ask for them."""
    found: dict[str, str] = {}
    for values in (named, own):
        for name, value in values.items():
            if name.endswith("_token") and (text := _text(value)) is not None:
                found[name] = text
    return found


def _pair(tokenizer: bytes, end: int | None) -> dict[str, int]:
    """How two texts are joined: the end tokens between them, and the second one's type.

    Where it is another way than a row can be written, it is BERT's.
    """
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(tokenizer.decode("utf-8")).encode("a", "b")
    sides = list(found.sequence_ids)
    if 0 not in sides or 1 not in sides:
        return {}
    second = sides.index(1)
    between = found.ids[len(sides) - sides[::-1].index(0) : second]
    kind, last = found.type_ids[second], found.ids[-1]
    if between not in ([last], [last, last]) or end not in (None, last) or kind not in (0, 1):
        return {}
    return {"between": len(between), "second_type": int(kind)}


def _text(value: Any) -> str | None:
    """The text of a token, which may be given with its properties."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _ids(value: Any, where: str) -> list[int]:
    """One number, a list of them, or none. Raises `CheckpointError`."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int and 0 <= number < 2**31 for number in found):
        raise CheckpointError(f"{where}: {str(value)[:60]!r} is not the number of a token, or some")
    return found
