"""Tokenizers of folders against those of transformers: older files, options beside, pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from bigmodel_cli.convert.assets import read_assets, read_with_notes
from bigmodel_cli.convert.marks import mask_token
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.data.text.split import batch_of_texts
from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")
ODD = [
    "", " ", "  two  blanks ", "Caf\u00e9 na\u00efve e\u0301", "\u0130stanbul \u0131I",
    "\U0001f642\U0001f469\u200d\U0001f467", "tab\tline\r\nend\x07\u0085", "\u00df\u1e9e \ufb01",
    "\u4e2d\u6587 text", "dont CAN'T 1,234.5",
    "<b> ##ing __x__", "\u05e2\u05d1 \u0627\u0644", "\u00a0\u2028\ufeff", "unaffable running dogs",
]  # fmt: skip
GPT2 = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "</s>")
TEXTS = [*ODD, *["the dogs are running, the cat isn't: caf\u00e9 \u4e2d 123"] * 9]


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    """A tokenizer as BERT's, trained on a few words."""
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    found.train_from_iterator(
        [*TEXTS, "The Dogs CAN Caf\u00e9 \u0130"],
        WordPieceTrainer(vocab_size=260, special_tokens=marks, show_progress=False),
    )
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """A tokenizer as RoBERTa's."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.train_from_iterator(
        TEXTS,
        BpeTrainer(
            vocab_size=330,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return found


def folder(path: Path, kind: str, named: dict[str, Any] | None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    if named is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


def check(path: Path) -> Any:
    """Ours, after each of the texts gave the numbers that it gives there."""
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    ours = load_tokenizer(read_assets(path))
    for text in ODD:
        want = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == want, text
        assert ours.decode(want) == theirs.decode(want, skip_special_tokens=True)
    first = theirs("running dogs").input_ids[:1]
    assert first == [ours.start_of_text] or not theirs.cls_token
    return ours


@pytest.mark.parametrize(
    "named",
    [
        None,
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False, "tokenizer_class": "BertTokenizer"},
        {"tokenize_chinese_chars": False, "tokenizer_class": "DistilBertTokenizer"},
    ],
)
def test_a_list_of_word_pieces_is_berts_tokenizer(
    named: dict[str, Any] | None, wordpiece: Tokenizer, tmp_path: Path
) -> None:
    path = folder(tmp_path / "a", "bert", named)
    wordpiece.model.save(str(path))
    ours = check(path)
    assert (ours.start_of_text, ours.end_of_text, mask_token(path)) == (2, 3, 4)
    assert "is made of vocab.txt" in read_with_notes(path)[1][0]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("gpt2", GPT2),
        ("gpt2", {**GPT2, "add_prefix_space": True}),
        ("roberta", {}),
        ("roberta", {"add_prefix_space": True, "tokenizer_class": "RobertaTokenizer"}),
    ],
)
def test_vocabulary_and_merges_are_gpt2s_and_robertas_tokenizer(
    kind: str, named: dict[str, Any] | None, bytewise: Tokenizer, tmp_path: Path
) -> None:
    path = folder(tmp_path / "a", kind, named)
    bytewise.model.save(str(path))
    ours = check(path)
    assert ours.end_of_text == 2
    assert mask_token(path) == (4 if kind == "roberta" else None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"vocab.txt": "a\nb\n"}, "it has no '.UNK.', the unknown token"),
        ({"vocab.txt": b"\xff\xfe[UNK]"}, "not UTF-8"),
        ({"tokenizer_config.json": '{"do_basic_tokenize": false}'}, "do_basic_tokenize"),
        ({"tokenizer_config.json": '{"do_lower_case": "yes"}'}, "true or false"),
        ({"vocab.txt": None, "vocab.json": "{}"}, "vocab.json is one part of a tokenizer"),
        ({"vocab.txt": None, "spiece.model": ""}, "spiece.model is SentencePiece's"),
        ({"config.json": '{"model_type": "llama"}'}, "vocab.txt is one part of a tokenizer"),
    ],
)
def test_what_is_not_read_is_refused(
    changes: dict[str, Any], fault: str, wordpiece: Tokenizer, tmp_path: Path
) -> None:
    path = folder(tmp_path / "a", "bert", None)
    wordpiece.model.save(str(path))
    for name, content in changes.items():
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match=fault):
        read_assets(path)


@pytest.mark.parametrize(
    ("vocab", "merges", "fault"),
    [
        ('{"a": "0"}', "", "not numbers"),
        ('{"a": 0, "b": 1}', "a b", "a merge of unknown tokens"),
        ('{"a": 0, "b": 1, "ab": 2}', "a b b", "a merge of unknown tokens"),
    ],
)
def test_damaged_merges_are_refused(vocab: str, merges: str, fault: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "a", "gpt2", None)
    (path / "vocab.json").write_text(vocab)
    (path / "merges.txt").write_text(merges)
    with pytest.raises(CheckpointError, match=fault):
        read_assets(path)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("bert", {"do_lower_case": False}),
        ("bert", {"strip_accents": False, "tokenizer_class": "BertTokenizerFast"}),
        ("distilbert", {"tokenize_chinese_chars": False}),
        ("bert", {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}),
        ("gpt2", {**GPT2, "add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"add_prefix_space": True, "tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_options_beside_a_tokenizer_hold_for_it(
    kind: str, named: dict[str, Any], wordpiece: Tokenizer, bytewise: Tokenizer, tmp_path: Path
) -> None:
    """They were passed over: a cased model read lower-case text, without a word."""
    path = folder(tmp_path / "a", kind, named)
    (wordpiece if "bert" in kind and kind != "roberta" else bytewise).save(
        str(path / "tokenizer.json")
    )
    check(path)
    told = read_with_notes(path)[1]
    assert len(told) == (named.get("tokenizer_class") != "PreTrainedTokenizerFast")
    shutil.rmtree(path)


def test_pairs_are_joined_as_each_family_does(
    wordpiece: Tokenizer, bytewise: Tokenizer, tmp_path: Path
) -> None:
    """RoBERTa's have two end tokens between them, and one type; ours had one, and two types."""
    pairs = [("running dogs", "the cat"), ("", "dogs"), ("a" * 40, "b" * 30)]
    for kind, tokenizer in (("bert", wordpiece), ("roberta", bytewise)):
        path = folder(tmp_path / kind, kind, {})
        tokenizer.save(str(path / "tokenizer.json"))
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        ours = load_tokenizer(read_assets(path))
        for pair in pairs:
            want = theirs(*pair, return_token_type_ids=True)
            items = [[np.array(ours.encode(text), np.int64) for text in pair]]
            found = batch_of_texts(items, ours, 200)
            assert found["tokens"][0].tolist() == want.input_ids
            assert found["types"][0].tolist() == want.token_type_ids
            cut = batch_of_texts(items, ours, 12)["tokens"][0]
            assert len(cut) == min(12, len(want.input_ids))
