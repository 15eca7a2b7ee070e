"""Files about text that stand beside exported weights: tokenizer, template, generation settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bigmodel_cli.convert.assets import CARD, GENERATION, KEPT, TEMPLATE
from bigmodel_cli.convert.folder import CONFIG
from bigmodel_cli.convert.tokenizer_files import TOKENIZER_CONFIG, between
from bigmodel_cli.data import CHAT_TEMPLATE, TOKENIZER, Tokenizer, load_tokenizer
from bigmodel_cli.export.source import Source

Values = dict[str, Any]
TYPED = ["input_ids", "token_type_ids", "attention_mask"]
"""What a tokenizer of pairs gives a model that tells the two texts apart."""


def tokenizer_files(source: Source) -> Iterator[tuple[str, bytes]]:
    """The tokenizer's files, and the others that the model came with, byte for byte."""
    for name in KEPT:
        if name not in (CONFIG, CARD) and (content := source.kept(name)) is not None:
            yield name, content
    if CHAT_TEMPLATE in source.assets:  # the one that it was trained with
        yield TEMPLATE, source.assets[CHAT_TEMPLATE]
    if TOKENIZER not in source.assets:
        return
    tokenizer = load_tokenizer(source.assets)
    yield TOKENIZER, _with_marks(source, tokenizer)
    if source.kept(TOKENIZER_CONFIG) is None:
        yield TOKENIZER_CONFIG, dump(_tokenizer_config(source, tokenizer))
    if source.kept(GENERATION) is None and source.model.can_generate:
        yield GENERATION, dump(token_ids(source))


def _with_marks(source: Source, tokenizer: Tokenizer) -> bytes:
    """tokenizer.json, which puts the special tokens around a text of a table that rows have here.

    A published one does so already.
    """
    content = source.assets[TOKENIZER]
    if not source.info.outputs or not source.spec.data.text_columns():
        return content
    values = json.loads(content)
    if values.get("post_processor") is not None:
        return content
    from tokenizers import Tokenizer as Library

    library = Library.from_str(content.decode("utf-8"))
    marks = (tokenizer.start_of_text, tokenizer.end_of_text)
    first, last = (str(library.id_to_token(i)) for i in marks if i is not None)
    values["post_processor"] = between(first, last, dict(zip((first, last), marks, strict=True)))
    return json.dumps(values, ensure_ascii=False).encode()


def _tokenizer_config(source: Source, tokenizer: Tokenizer) -> Values:
    """What AutoTokenizer needs beside tokenizer.json."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(source.assets[TOKENIZER].decode("utf-8"))
    marks = {"eos_token": tokenizer.end_of_text, "bos_token": tokenizer.start_of_text}
    named = {n: library.id_to_token(i) for n, i in marks.items() if i is not None}
    typed = source.spec.data.text_columns() == 2 and source.spec.model.model_dump().get(
        "token_types"
    )
    if "eos_token" in named:
        named["pad_token"] = named["eos_token"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.model.max_len,
        "clean_up_tokenization_spaces": False,
        **({"model_input_names": TYPED} if typed else {}),
        **named,
    }


def token_ids(source: Source) -> Values:
    """The numbers of special tokens, of a model that was trained here from the beginning."""
    if TOKENIZER not in source.assets or source.kept(CONFIG) is not None:
        return {}
    tokenizer, both = load_tokenizer(source.assets), source.model.is_encoder_decoder
    ids = {
        "bos_token_id": tokenizer.start_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": tokenizer.end_of_text,
        "decoder_start_token_id": tokenizer.target_start if both else None,
    }
    return {name: number for name, number in ids.items() if number is not None}


def dump(values: Values) -> bytes:
    """The bytes of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"
