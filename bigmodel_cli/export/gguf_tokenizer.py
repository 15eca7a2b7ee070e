"""A tokenizer as GGUF has it: tokens, merges, and the name of the way in which text is split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.data import BUILT_IN, TOKENIZER, find_template, load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.export.source import Source

NORMAL, CONTROL, OWN, UNUSED = 1, 3, 4, 5
"""Types of tokens."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "smaug-bpe",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
}
"""(the pattern, whether whole words are looked up before merging) -> the name of the split."""
PLAIN = {
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
}
"""Options of a BPE that GGUF has no key for -> what they must be; "" passes for None."""

Values = Mapping[str, Any]


def add_tokenizer(writer: Any, source: Source, vocab: int) -> None:
    """Add the tokenizer of the source, for a model of `vocab` tokens.

    Raises `SpecError` for one that GGUF cannot say.
    """
    values = json.loads(source.assets[TOKENIZER])
    model = values["model"]
    split = split_name(values)
    texts, kinds = [f"[UNUSED{i}]" for i in range(vocab)], [UNUSED] * vocab
    named = [(text, number, NORMAL) for text, number in model["vocab"].items()]
    for token in values.get("added_tokens", ()):
        named.append((token["content"], token["id"], CONTROL if token["special"] else OWN))
    if (last := max((number for _, number, _ in named), default=0)) >= vocab:
        raise SpecError(
            f"data.tokenizer: it has a token {last}, and the model {vocab} tokens; --to hf has both"
        )
    for text, number, kind in named:
        texts[number], kinds[number] = text, kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    tokenizer = load_tokenizer(source.assets)
    if tokenizer.end_of_text is not None:
        writer.add_eos_token_id(tokenizer.end_of_text)
    if tokenizer.start_of_text is not None:
        writer.add_bos_token_id(tokenizer.start_of_text)
    ids = {text: number for text, number, _ in named}
    others = {"pad_token": writer.add_pad_token_id, "unk_token": writer.add_unk_token_id}
    for name, add in others.items():
        if tokenizer.named.get(name) in ids:
            add(ids[tokenizer.named[name]])
    writer.add_add_bos_token(tokenizer.begins)
    template, name = find_template(None, source.assets)
    if name != BUILT_IN:
        writer.add_chat_template(template)


def split_name(values: Values) -> str:
    """What GGUF calls the way in which this tokenizer.json splits text before merging.

    llama.cpp splits by that name alone, so that any other way would give other tokens. Raises
    `SpecError` for one without a name.
    """
    model = values["model"]
    steps = _steps(values.get("pre_tokenizer"), "pretokenizers")
    if model.get("type") != "BPE" or not steps or steps[-1].get("type") != "ByteLevel":
        raise SpecError(
            "data.tokenizer: GGUF takes byte-level BPE here (type: bpe or bytes), and this one is"
            f" {model.get('type')}"
        )
    normal = [step.get("type") for step in _steps(values.get("normalizer"), "normalizers")]
    odd = [key for key, usual in PLAIN.items() if (model.get(key) or usual) != usual]
    # NFC alone is passed over, as llama.cpp's own conversion does
    if normal in ([], ["NFC"]) and not odd and steps[-1].get("add_prefix_space") is False:
        whole = model.get("ignore_merges") is True
        regular = steps[-1].get("use_regex", True) is not False
        if len(steps) == 1 and not whole and (regular or not model["merges"]):
            return "gpt-2"
        if len(steps) == 2 and regular and not whole and _is_digits(steps[0]):
            return "smollm"
        pattern = _pattern(steps[0]) if len(steps) == 2 and not regular else None
        if pattern is not None and (pattern, whole) in SPLITS:
            return SPLITS[pattern, whole]
    raise SpecError(
        "data.tokenizer: it splits text in a way that has no name in GGUF here; --to hf has it"
    )


def _steps(value: Any, inner: str) -> list[Any]:
    """The steps of a sequence of them, or the one."""
    if value is None:
        return []
    return list(value[inner]) if value.get("type") == "Sequence" else [value]


def _is_digits(step: Values) -> bool:
    return step.get("type") == "Digits" and step.get("individual_digits") is True


def _pattern(step: Values) -> str | None:
    """The regular expression whose matches a step isolates."""
    plain = step.get("behavior") == "Isolated" and step.get("invert") is False
    found = step.get("pattern", {}).get("Regex") if step.get("type") == "Split" and plain else None
    return found if isinstance(found, str) else None
