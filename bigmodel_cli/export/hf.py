"""A folder that transformers' `from_pretrained` opens, with the same outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigmodel_cli.console import say
from bigmodel_cli.convert.assets import (
    CARD,
    GENERATION,
    KEPT,
    TEMPLATE,
    TOKENIZER_CONFIG,
)
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.exporting import Expressed, express, folder_files
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.convert.folder import CONFIG, json_of
from bigmodel_cli.convert.opening import family_of
from bigmodel_cli.data import CHAT_TEMPLATE, SOURCE_TOKENIZER, TOKENIZER, Tokenizer, load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.card import card
from bigmodel_cli.export.source import Source
from bigmodel_cli.export.target import Target
from bigmodel_cli.export.writing import write_file
from bigmodel_cli.lazy import torch

Values = dict[str, Any]
NARROW = ("bfloat16", "float16")


class HuggingFace(Target):
    """config.json, safetensors, tokenizer, generation settings and a model card."""

    opens = "transformers: AutoModel*.from_pretrained"

    def write(self, source: Source, folder: Path) -> None:
        if SOURCE_TOKENIZER in source.assets:
            raise SpecError(
                "data.source_tokenizer: no class of transformers takes a tokenizer.json for each"
                " side; train with one tokenizer for both"
            )
        kept = _json(source, CONFIG)
        origin = family_of(Config(kept, CONFIG))
        found = express(source.spec.model, source.info, source.task, origin)
        if found.left_out:
            left = ", ".join(f"model.{path}" for path in found.left_out[:5])
            say(f"not written, since the class has no such option in training: {left}")
        weights = source.model.state_dict()
        dtype = _dtype(kept)
        narrowed = dtype and any(weights[n].dtype == torch.float32 for n in weights)
        if dtype and narrowed and source.step:
            say(f"weights are rounded from fp32 to {kept_dtype(kept)}, in which the model came")
        tokenizer = dict(_tokenizer(source, found))
        files = folder_files(
            found, source.spec.model, source.info, source.task, weights,
            {**kept, **_token_ids(source)}, dtype if source.step else None,
        )  # fmt: skip
        more = found.family.more_files(written_out(source.spec.model, source.info), source.info)
        for name, pieces in files:
            write_file(folder / name, pieces)
        for name, values in more.items():
            if source.step or source.kept(name) is None:
                tokenizer[name] = _dump(values)
        for name, content in tokenizer.items():
            write_file(folder / name, [content])
        write_file(folder / CARD, [card(source, found).encode()])


def kept_dtype(kept: Values) -> str:
    """The dtype that the model came in; "" where it did not come from a folder."""
    return str(kept.get("dtype") or kept.get("torch_dtype") or "")


def _dtype(kept: Values) -> torch.dtype | None:
    name = kept_dtype(kept)
    found: torch.dtype | None = getattr(torch, name) if name in NARROW else None
    return found


def _json(source: Source, name: str) -> Values:
    """The values of a kept JSON file; none where there is no such file."""
    content = source.kept(name)
    return {} if content is None else json_of(content, source.path / name)


def _tokenizer(source: Source, found: Expressed) -> Iterator[tuple[str, bytes]]:
    """The tokenizer's files, and the others that the model came with, byte for byte."""
    for name in KEPT:
        if name not in (CONFIG, CARD) and (content := source.kept(name)) is not None:
            yield name, content
    if CHAT_TEMPLATE in source.assets:  # the one that it was trained with
        yield TEMPLATE, source.assets[CHAT_TEMPLATE]
    if TOKENIZER not in source.assets:
        return
    yield TOKENIZER, source.assets[TOKENIZER]
    tokenizer = load_tokenizer(source.assets)
    if source.kept(TOKENIZER_CONFIG) is None:
        yield TOKENIZER_CONFIG, _dump(_tokenizer_config(source, tokenizer))
    if source.kept(GENERATION) is None and source.model.can_generate:
        yield GENERATION, _dump(_token_ids(source))


def _tokenizer_config(source: Source, tokenizer: Tokenizer) -> Values:
    """What AutoTokenizer needs beside tokenizer.json."""
    from tokenizers import Tokenizer as Library

    library = Library.from_str(source.assets[TOKENIZER].decode("utf-8"))
    marks = {"eos_token": tokenizer.end_of_text, "bos_token": tokenizer.start_of_text}
    named = {n: library.id_to_token(i) for n, i in marks.items() if i is not None}
    if "eos_token" in named:
        named["pad_token"] = named["eos_token"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.model.max_len,
        "clean_up_tokenization_spaces": False,
        **named,
    }


def _token_ids(source: Source) -> Values:
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


def _dump(values: Values) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n"
