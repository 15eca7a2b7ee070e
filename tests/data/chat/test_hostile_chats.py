"""Conversations as they are in the wild: what would be learnt wrongly is mended or said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.data import open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.chat.options import ChatOptions, PreferencesOptions
from bigmodel_cli.data.chat.template import DATE
from bigmodel_cli.errors import CheckpointError, DataError

HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
    "{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PLAIN = ZEPHYR.replace("</s>", "<|endoftext|>")
DATED = "{{ strftime_now('%d %b %Y') }}" + PLAIN
ASKED = {"role": "user", "content": "a bird?"}
ANSWER = {"role": "assistant", "content": "an owl"}


def opened(rows: list[Any], *, kind: Any = ChatOptions, **options: Any) -> tuple[DataSet, str]:
    """The data of some rows, and what was said."""
    assets = options.pop("assets", None)
    if text := options.pop("text", None):
        Path("t.jinja").write_text(text)
        options["template"] = "t.jinja"
    file = "talks.json" if options.pop("listed", False) else "talks.jsonl"
    raw = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    whole = f"[{','.join(raw)}]" if file.endswith("json") else "\n".join(raw)
    Path(file).write_text(whole, "utf-8")
    said: list[str] = []
    values = {"train": [file], "val_fraction": 0, "context": 200, "tokenizer": {"type": "bytes"}}
    made = kind.model_validate({**values, **options})
    data = open_data(made, base=Path(), say=said.append, assets=assets)
    return data, "\n".join(said)


def learnt(data: DataSet) -> list[bytes]:
    """What is learnt of each row, as bytes, with | for the end."""
    batch = data.split("train").batch(np.arange(len(data.split("train"))), 0, 0, True)
    chosen = (
        [int(t) for t, m in zip(row, mask, strict=True) if m and t >= 0]
        for row, mask in zip(batch["tokens"], batch["loss_mask"], strict=True)
    )
    return [bytes(124 if t == 256 else t for t in row) for row in chosen]


def texts(data: DataSet, name: str = "tokens") -> list[str]:
    batch = data.split("train").batch(np.arange(len(data.split("train"))), 0, 0, True)
    return [bytes(t for t in row if 0 <= t < 256).decode() for row in batch[name].tolist()]


def file_of(tmp_path: Path, special: list[str], words: str, metaspace: bool = False) -> Any:
    """A tokenizer of the library with these special tokens, and the option that names it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    alphabet = sorted({*words, "\u2581", "\n"})
    if metaspace:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        library.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", *special],
        show_progress=False,
    )
    library.train_from_iterator([words] * 3, trainer)
    library.save(str(tmp_path / "own.json"))
    return library, {"type": "file", "path": str(tmp_path / "own.json")}


def test_special_tokens_before_an_answer_do_not_end_it(tmp_path: Path) -> None:
    marks = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]
    marks.append("<|endoftext|>")
    library, tokenizer = file_of(tmp_path, marks, "final assistant user an owl a bird?")
    final = {"role": "assistant", "content": "final"}
    rows = [{"messages": [ASKED, ANSWER]}, {"messages": [ASKED, final, ASKED, ANSWER]}]
    data, said = opened(rows, text=HARMONY, tokenizer=tokenizer)
    batch = data.split("train").batch(np.arange(3), 0, 0, True)
    found = [
        library.decode(
            [t for t, m in zip(row.tolist(), mask.tolist(), strict=True) if m],
            skip_special_tokens=False,
        )
        for row, mask in zip(batch["tokens"], batch["loss_mask"], strict=True)
    ]
    whole = "<|channel|>final<|message|>{}<|return|>"
    assert found == [whole.format(text) for text in ("an owl", "final", "an owl")]
    assert "each answer with <|return|> at its end" in said


def test_tokens_are_those_of_the_whole_text(tmp_path: Path) -> None:
    """A tokenizer that marks the beginning of a text does not mark each turn's."""
    transformers = pytest.importorskip("transformers")
    words = "a bird? an owl <|user|>\n<|assistant|>\n"
    library, tokenizer = file_of(tmp_path, ["</s>"], words, metaspace=True)
    talk = [ASKED, ANSWER, {"role": "user", "content": "an owl?"}, ANSWER]
    data, _ = opened([{"messages": talk}], text=ZEPHYR, tokenizer=tokenizer)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    wanted = theirs.apply_chat_template(talk, chat_template=ZEPHYR, return_dict=True)
    batch = data.split("train").batch(np.arange(1), 0, 0, True)
    assert batch["tokens"][0].tolist() == list(wanted["input_ids"])
    tokens = batch["tokens"][0][batch["loss_mask"][0]].tolist()
    spelled = [library.id_to_token(token) for token in tokens]
    assert "".join(spelled) == "an\u2581owl</s>an\u2581owl</s>"


def test_answers_without_weight_are_read_and_not_learnt() -> None:
    flags: list[dict[str, Any]] = [{"weight": 0}, {"train": False}, {"training": 0.0}]
    rows = [
        {"messages": [ASKED, {**ANSWER, **f}, ASKED, {**ANSWER, "content": "b"}]} for f in flags
    ]
    data, said = opened([*rows, {"messages": [ASKED, {**ANSWER, "weight": 1}]}])
    assert learnt(data) == [b"b|", b"b|", b"b|", b"an owl|"]
    assert all(text.count("an owl") == 1 for text in texts(data))
    assert "data.train: 3 answers read and not learnt" in said
    others, _ = opened([{"messages": [ASKED, ANSWER]}])
    assert others.fingerprint != data.fingerprint
    with pytest.raises(DataError, match=r"talks.jsonl:1: no message of the assistant"):
        opened([{"messages": rows[0]["messages"][:2]}])
    with pytest.raises(DataError, match=r"0\.5 is neither 0 nor 1"):
        opened([{"messages": [ASKED, {**ANSWER, "weight": 0.5}]}])


def test_roles_in_any_case_and_others_that_are_said() -> None:
    talk = [{"role": "System ", "content": "x"}, {**ASKED, "role": "USER"}]
    rows = [[*talk, {**ANSWER, "role": "Assistant"}], [{"from": "Human", "value": "a bird?"}]]
    rows[1] += [{"from": "critic", "value": "so?"}, {"from": "ChatGPT", "value": "an owl"}]
    data, said = opened([{"conversations": row} for row in rows])
    assert learnt(data) == [b"an owl|", b"an owl|"]
    assert "data.train: 1 role read and not learnt: critic" in said
    with pytest.raises(DataError, match=r"has <\|endoftext\|> in it"):
        opened([{"messages": [{"role": "a<|endoftext|>", "content": ""}, ANSWER]}])


def test_each_form_takes_a_system_message() -> None:
    forms: list[dict[str, Any]] = [
        {"messages": [ASKED, ANSWER]},
        {"conversations": [{"from": "human", "value": "a bird?"}, ANSWER]},
        {"instruction": "a bird?", "input": "", "output": "an owl"},
        {"prompt": "a bird?", "response": "an owl"},
    ]  # fmt: skip
    data, _ = opened([{"system": "Be brief.", **form} for form in forms])
    assert texts(data) == [texts(data)[0]] * 4
    assert "### System:\nBe brief." in texts(data)[0]


@pytest.mark.parametrize("key", ["tools", "functions", "history", "images"])
def test_rows_with_more_than_messages_are_refused(key: str) -> None:
    with pytest.raises(DataError, match=rf"talks.jsonl:1: the row has {key}, without which"):
        opened([{"messages": [ASKED, ANSWER], key: [["a", "b"]]}])
    assert learnt(opened([{"messages": [ASKED, ANSWER], key: []}])[0]) == [b"an owl|"]


def test_what_is_not_read_is_said() -> None:
    rows = [
        {"id": 3, "question": "a bird?", "answer": "an owl", "context": "in the wood"},
        {"messages": [ASKED, ANSWER, ASKED, ASKED]},
    ]
    data, said = opened(rows)
    assert learnt(data) == [b"an owl|", b"an owl|"]
    assert "data.train: not read of the rows: context, id" in said
    assert "data.train: 2 messages after the last answer left out" in said


def test_a_key_that_stands_twice_is_refused_in_lists_too() -> None:
    row = '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}'
    for listed in (True, False):
        with pytest.raises(DataError, match="the key 'role' stands twice"):
            opened([row], listed=listed)


def test_a_date_is_kept_for_a_resume() -> None:
    rows = [{"messages": [ASKED, ANSWER]}]
    data, said = opened(rows, text=DATED)
    date = data.assets()[DATE].decode()
    assert f"the chat template writes the date: {date}" in said
    known = {**data.assets(), DATE: b"2001-02-03"}
    other, _ = opened(rows, text=DATED, assets=known)
    assert texts(other)[0].startswith("03 Feb 2001")
    assert other.fingerprint != data.fingerprint
    assert opened(rows, text=DATED, assets=known)[0].fingerprint == other.fingerprint
    assert DATE not in opened(rows)[0].assets()
    with pytest.raises(CheckpointError, match="not a date"):
        opened(rows, text=DATED, assets={**known, DATE: b"../../x"})


def test_a_clock_that_is_printed_to_the_second_stands_still() -> None:
    text = "{{ strftime_now('%H:%M:%S.%f') }}" + PLAIN
    data, _ = opened([{"messages": [ASKED, ANSWER]}] * 3, text=text)
    assert {row[:15] for row in texts(data)} == {"00:00:00.000000"}


def test_a_template_is_told_that_there_are_no_tools() -> None:
    """As transformers tells it: published ones ask whether they are none."""
    text = "{% if tools is not none or documents is not none %}{{ tools[0].name }}!{% endif %}"
    data, _ = opened([{"messages": [ASKED, ANSWER]}], text=text + PLAIN)
    assert texts(data)[0].startswith("<|user|>")


def test_a_template_that_is_not_text_is_refused() -> None:
    Path("t.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(DataError, match=r"t.jinja: not UTF-8"):
        opened([{"messages": [ASKED, ANSWER]}], template="t.jinja")


SYSTEM = {"role": "system", "content": "Be brief."}
WORSE = {"role": "assistant", "content": "no"}
PREFERENCES: list[dict[str, Any]] = [
    {"system": "Be brief.", "question": "a bird?", "chosen": "an owl", "rejected": "no"},
    {"prompt": [SYSTEM, ASKED], "chosen": [ASKED, ANSWER], "rejected": [ASKED, WORSE]},
    {"prompt": "a bird?", "chosen": [SYSTEM, ASKED, ANSWER], "rejected": [SYSTEM, ASKED, WORSE]},
    {"chosen": [SYSTEM, ASKED, ANSWER], "rejected": [SYSTEM, ASKED, WORSE]},
    {"system": "Be brief.", "instruction": "a bird?", "input": "", "chosen": "an owl",
     "rejected": "no"},
]  # fmt: skip


def test_a_question_is_asked_once_in_each_form_of_preferences() -> None:
    data, _ = opened(PREFERENCES, kind=PreferencesOptions)
    for name, answer in (("tokens", "an owl"), ("rejected", "no")):
        found = texts(data, name)
        assert found == [found[0]] * len(PREFERENCES)
        assert found[0].count("a bird?") == found[0].count(answer) == 1


def test_preferences_without_a_question_are_refused() -> None:
    row = {"chosen": "\n\nHuman: a bird?\n\nAssistant: an owl", "rejected": "\n\nHuman: no"}
    with pytest.raises(DataError, match="two answers without a question"):
        opened([row], kind=PreferencesOptions)
    other = {**ASKED, "content": "a fish?"}
    row = {"prompt": "a bird?", "chosen": [other, ANSWER], "rejected": [other, WORSE]}
    with pytest.raises(DataError, match="do not begin with those of the prompt"):
        opened([row], kind=PreferencesOptions)
