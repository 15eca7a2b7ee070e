"""The tokenizer of a folder: its tokenizer.json, or one made of older files, vocab.txt and others.

What tokenizer_config.json says of case, accents and the first blank holds for it, as it does where
transformers reads the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.folder import ANOTHER, CONFIG, has, read, read_json
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.errors import CheckpointError

MOST_TOKENIZER = 100_000_000
TOKENIZER_CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
WORDS, VOCAB, MERGES = "vocab.txt", "vocab.json", "merges.txt"
OLDER = (WORDS, VOCAB, MERGES)
PIECES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "source.spm")
"""Tokenizers in older forms: of some families they are read; SentencePiece's are not."""
WORD_PIECES = ("Bert", "DistilBert", "bert", "distilbert")
BYTE_LEVEL = ("GPT2", "Roberta", "gpt2", "roberta")
"""How `tokenizer_class` begins, or what `model_type` is, of those whose text is split so."""
NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of tokenizer_config.json -> of BERT's normalizer in tokenizer.json."""
MARKS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""BERT's special tokens where no file says otherwise."""
ROBERTAS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
GPTS = {"eos_token": "<|endoftext|>"}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")

Values = Mapping[str, Any]


def tokenizer_json(folder: Path) -> tuple[bytes, list[str]] | None:
    """The content of the folder's tokenizer.json as it is to be used, and what is to be said of it.

    None where the folder has no tokenizer. Raises `CheckpointError` for one in a form that is not
    read.
    """
    own = read_json(folder, TOKENIZER_CONFIG) if has(folder, TOKENIZER_CONFIG) else {}
    config = read_json(folder, CONFIG)
    named = own.get("tokenizer_class") or config.get("tokenizer_class") or config.get("model_type")
    kind = str(named)
    if has(folder, TOKENIZER):
        return _as_configured(read(folder, TOKENIZER, MOST_TOKENIZER), own, kind)
    more = read_json(folder, TOKENS_MAP) if has(folder, TOKENS_MAP) else {}
    if has(folder, WORDS) and kind.startswith(WORD_PIECES):
        values, files = _word_pieces(folder, own, {**MARKS, **_marks(more), **_marks(own)}), WORDS
    elif has(folder, VOCAB) and has(folder, MERGES) and kind.startswith(BYTE_LEVEL):
        usual = ROBERTAS if kind.lower().startswith("roberta") else GPTS
        marks = {**usual, **_marks(more), **_marks(own)}
        values, files = _byte_level(folder, own, marks), f"{VOCAB} and {MERGES}"
    else:
        _refuse(folder)
        return None
    note = f"{folder}: its tokenizer is made of {files}, since there is no {TOKENIZER}"
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass"), [note]


def _refuse(folder: Path) -> None:
    """Raise `CheckpointError` where there is a tokenizer in another form."""
    for name in (*PIECES, *OLDER):
        if has(folder, name):
            what = "SentencePiece's" if name in PIECES else "one part of a tokenizer of this family"
            raise CheckpointError(
                f"{folder}: {name} is {what}, which is not read; write a tokenizer.json beside it:"
                f" transformers.AutoTokenizer.from_pretrained({str(folder)!r})"
                f".save_pretrained({str(folder)!r})"
            )


def _as_configured(content: bytes, own: Values, kind: str) -> tuple[bytes, list[str]]:
    """The tokenizer with the options that tokenizer_config.json gives otherwise."""
    wanted: dict[str, Any] = {}
    part = "pre_tokenizer"
    if kind.startswith(WORD_PIECES):
        part = "normalizer"
        wanted = {ours: own[key] for key, ours in NORMALIZER.items() if key in own}
    elif kind.startswith(BYTE_LEVEL) and "add_prefix_space" in own:
        wanted = {"add_prefix_space": own["add_prefix_space"]}
    wanted = {key: value for key, value in wanted.items() if value in (True, False, None)}
    if not wanted:
        return content, []
    try:
        values = json.loads(content)
        there = values[part]
        if there["type"] not in ("BertNormalizer", "ByteLevel"):
            return content, []
        changed = {k: v for k, v in wanted.items() if k in there and there[k] != v}
    except (ValueError, TypeError, KeyError, RecursionError):
        return content, []  # damaged, or of another form: that is told where it is opened
    if not changed:
        return content, []
    there |= changed
    said = ", ".join(f"{key} {json.dumps(value)}" for key, value in changed.items())
    note = f"{TOKENIZER_CONFIG}: {said}, where {TOKENIZER} says otherwise: it is followed"
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass"), [note]


def _marks(values: Values) -> dict[str, Any]:
    """The special tokens that a file names."""
    return {
        name: value
        for name, value in values.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _added(marks: Values, vocab: Values) -> list[dict[str, Any]]:
    """The special tokens that there are, as tokenizer.json has them.

    The mask takes the blank before it, as transformers has RoBERTa's.
    """
    found: dict[int, dict[str, Any]] = {}
    for name, token in marks.items():
        text = _text(token)
        if text in vocab:
            flags = dict.fromkeys(FLAGS, False)
            flags["lstrip"] = (name, text) == ("mask_token", "<mask>")
            said = token if isinstance(token, dict) else {}
            flags |= {flag: said[flag] for flag in FLAGS if isinstance(said.get(flag), bool)}
            number = vocab[text]
            found[number] = {"id": number, "content": text, **flags, "special": True}
    return [found[number] for number in sorted(found)]


def _whole(
    marks: Values,
    vocab: Values,
    *,
    normalizer: Values | None,
    pre_tokenizer: Values,
    post_processor: Values | None,
    decoder: Values,
    model: Values,
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(marks, vocab),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def between(first: str, last: str, vocab: Values) -> dict[str, Any] | None:
    """The post-processor that puts a text between two special tokens, where there are these."""
    if first not in vocab or last not in vocab:
        return None
    begin, end = ({"SpecialToken": {"id": text, "type_id": 0}} for text in (first, last))
    one, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, one, end],
        "pair": [begin, one, end, other, {"SpecialToken": {"id": last, "type_id": 1}}],
        "special_tokens": {
            text: {"id": text, "ids": [vocab[text]], "tokens": [text]} for text in (first, last)
        },
    }


def _word_pieces(folder: Path, own: Values, marks: Values) -> dict[str, Any]:
    """BERT's tokenizer, of the list of its word pieces. Raises `CheckpointError`."""
    if own.get("do_basic_tokenize") is False or own.get("never_split"):
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG}: do_basic_tokenize and never_split are not built"
        )
    lines = _lines(folder, WORDS)
    vocab = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    unknown = _text(marks["unk_token"])
    if unknown not in vocab:
        raise CheckpointError(
            f"{folder / WORDS}: it has no {clipped(repr(unknown))}, the unknown token; {ANOTHER}"
        )
    usual = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    chosen = {ours: own.get(key, usual[key]) for key, ours in NORMALIZER.items()}
    if not all(value in (True, False, None) for value in chosen.values()):
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG}: {', '.join(NORMALIZER)}: true or false"
        )
    return _whole(
        marks,
        vocab,
        normalizer={"type": "BertNormalizer", "clean_text": True, **chosen},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=between(_text(marks["cls_token"]), _text(marks["sep_token"]), vocab),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    )


def _byte_level(folder: Path, own: Values, marks: Values) -> dict[str, Any]:
    """GPT-2's tokenizer, or RoBERTa's, of vocabulary and merges. Raises `CheckpointError`."""
    vocab = read_json(folder, VOCAB)
    if not vocab or not all(type(number) is int and number >= 0 for number in vocab.values()):
        raise CheckpointError(f"{folder / VOCAB}: damaged (not numbers of tokens); {ANOTHER}")
    merges = [line.split(" ") for line in _lines(folder, MERGES) if line]
    merges = merges[1:] if merges and merges[0][0].startswith("#version") else merges
    if any(len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys() for merge in merges):
        raise CheckpointError(f"{folder / MERGES}: damaged (a merge of unknown tokens); {ANOTHER}")
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    first = own.get("add_prefix_space") is True
    begin, end = (_text(marks.get(name, "")) for name in ("bos_token", "eos_token"))
    between = None
    if begin != end and {begin, end} <= vocab.keys():
        between = {
            "type": "RobertaProcessing",
            "cls": [begin, vocab[begin]],
            "sep": [end, vocab[end]],
            "trim_offsets": True,
            "add_prefix_space": first,
        }
    return _whole(
        marks,
        vocab,
        normalizer=None,
        pre_tokenizer={**level, "add_prefix_space": first},
        post_processor=between,
        decoder={**level, "add_prefix_space": True},
        model={"type": "BPE", "vocab": vocab, "merges": merges},
    )


def _lines(folder: Path, name: str) -> list[str]:
    try:
        text = read(folder, name, MOST_TOKENIZER).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / name}: not UTF-8: {error}; {ANOTHER}") from None
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
