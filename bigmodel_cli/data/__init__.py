"""Data: files to dicts of tensors with named keys.

One file for each form, one name in the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bigmodel_cli.config import Table
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.audio.mel import middles_of
from bigmodel_cli.data.audio.texts import HEARD, LANGUAGE, prompt_tokens
from bigmodel_cli.data.audio.ticks import Ticks
from bigmodel_cli.data.base import FACTS, TOKENIZERS, AnyDataOptions, Assets, DataSet, Say, Split
from bigmodel_cli.data.chat.options import ChatOptions, PreferencesOptions
from bigmodel_cli.data.chat.template import ASSET as CHAT_TEMPLATE
from bigmodel_cli.data.chat.template import BUILT_IN, Template, find_template
from bigmodel_cli.data.chat.turns import Turns
from bigmodel_cli.data.expected import ExpectedData
from bigmodel_cli.data.image.images import (
    CIFAR10Options,
    CIFAR100Options,
    DigitsOptions,
    FashionMNISTOptions,
    FolderOptions,
    MNISTOptions,
    ParquetOptions,
)
from bigmodel_cli.data.image.pixels import denormalise, prepare_image
from bigmodel_cli.data.inputs import Item, LongReader, Reader, Sources, read_items
from bigmodel_cli.data.kinds import input_of, random_batch, target_of
from bigmodel_cli.data.overlap import check_held_out, exposure, record, say_overlaps
from bigmodel_cli.data.prompts import Dialogues, Prompts
from bigmodel_cli.data.replay import with_replay
from bigmodel_cli.data.shards.images import ImageShardsOptions
from bigmodel_cli.data.shards.options import ShardsOptions
from bigmodel_cli.data.synthetic import SyntheticOptions
from bigmodel_cli.data.text.cleaning import lines_of
from bigmodel_cli.data.text.conll import CoNLLOptions
from bigmodel_cli.data.text.docstrings import DocstringsOptions
from bigmodel_cli.data.text.documents import StdlibOptions, TextOptions
from bigmodel_cli.data.text.pairs import PairsOptions, PairTableOptions
from bigmodel_cli.data.text.table import TableOptions
from bigmodel_cli.data.text.tokenizer import Tokenizer
from bigmodel_cli.data.text.tokenizer_files import ASSET as TOKENIZER
from bigmodel_cli.data.text.tokenizer_files import SOURCE_ASSET as SOURCE_TOKENIZER
from bigmodel_cli.data.text.tokenizer_files import SPECIAL_ASSET as SPECIAL_TOKENS
from bigmodel_cli.data.text.tokenizer_files import (
    load_source_tokenizer,
    load_tokenizer,
    read_tokenizer,
)
from bigmodel_cli.data.trained_on import ASSET as TRAINED_ON
from bigmodel_cli.data.trained_on import load as load_trained_on
from bigmodel_cli.errors import DataError, MissingData

SOURCES = Table(
    "data",
    AnyDataOptions,
    TextOptions,
    StdlibOptions,
    PairsOptions,
    PairTableOptions,
    DocstringsOptions,
    TableOptions,
    MNISTOptions,
    FashionMNISTOptions,
    CIFAR10Options,
    CIFAR100Options,
    DigitsOptions,
    FolderOptions,
    ParquetOptions,
    AudioOptions,
    SyntheticOptions,
    CoNLLOptions,
    ChatOptions,
    PreferencesOptions,
    ShardsOptions,
    ImageShardsOptions,
)
DataOptions = Annotated[AnyDataOptions, SOURCES]


def open_data(
    options: AnyDataOptions,
    *,
    base: Path,
    say: Say,
    assets: Assets | None = None,
    only: str | None = None,
) -> DataSet:
    """The data that the options describe.

    Relative paths start at `base`. `assets` are the files of a checkpoint whose tokenizer and
    normalisation are used rather than fitted anew; the classes are always the data's own. `only`
    names the one split to be evaluated: nothing else is read that it does not need, and the whole
    DatasetInfo is the checkpoint's, its classes too. Raises `DataError`, and `SpecError` for what
    the checkpoint does not know.
    """
    data = options.open(base=base, say=say, assets=assets, only=only)
    options.check(data.info)
    return data


def open_or_expect(options: AnyDataOptions, *, say: Say, assets: Assets | None = None) -> DataSet:
    """The data that the options describe; where it is missing, its shapes as far as they are known,
    which is reported.

    Raises `DataError` naming the option that would say more.
    """
    try:
        return open_data(options, base=Path(), say=say, assets=assets)
    except MissingData as missing:
        fault = str(missing)
    try:
        expected = options.expected(assets)
    except DataError as unknown:
        raise DataError(f"{fault}. Without the data, {unknown}") from None
    say(f"{fault}. Without the data, this is assumed: {expected}")
    return ExpectedData(expected)


__all__ = [
    "BUILT_IN",
    "CHAT_TEMPLATE",
    "FACTS",
    "HEARD",
    "LANGUAGE",
    "SOURCES",
    "SOURCE_TOKENIZER",
    "SPECIAL_TOKENS",
    "TOKENIZER",
    "TOKENIZERS",
    "TRAINED_ON",
    "AnyDataOptions",
    "Assets",
    "DataOptions",
    "DataSet",
    "Dialogues",
    "Item",
    "LongReader",
    "Prompts",
    "Reader",
    "Say",
    "Sources",
    "Split",
    "Template",
    "Ticks",
    "Tokenizer",
    "Turns",
    "check_held_out",
    "denormalise",
    "exposure",
    "find_template",
    "input_of",
    "lines_of",
    "load_source_tokenizer",
    "load_tokenizer",
    "load_trained_on",
    "middles_of",
    "open_data",
    "open_or_expect",
    "prepare_image",
    "prompt_tokens",
    "random_batch",
    "read_items",
    "read_tokenizer",
    "record",
    "say_overlaps",
    "target_of",
    "with_replay",
]
