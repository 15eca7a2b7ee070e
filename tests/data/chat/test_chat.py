"""Conversations: which tokens are learnt, rows of several, what is refused, and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import loss_of

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import open_data
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.data.chat.options import ChatOptions
from bigmodel_cli.data.chat.split import Chat, pack
from bigmodel_cli.data.chat.template import Template
from bigmodel_cli.data.chat.turns import Sample
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.tasks.causal_lm import CausalLMOptions

Cli = Callable[..., Any]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DROPS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and"
    " not loop.last %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALKS: list[list[tuple[str, str]]] = [
    [("system", "Be brief."), ("user", "Hi\nthere"), ("assistant", "Hello, you."), ("user", "?")],
    [("user", "1 + 1"), ("assistant", "2"), ("user", "2 + 2"), ("assistant", " 4, no?\n")],
    [("user", ""), ("assistant", "")],
]


def messages(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A byte-level BPE with ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    library.train_from_iterator(["user assistant Hello, you. 1 + 1 Be brief."] * 3, trainer)
    path = tmp_path / "tokenizer.json"
    library.save(str(path))
    return path


def opened(rows: list[Any], tokenizer: Path, **options: Any) -> tuple[DataSet, list[str]]:
    Path("talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("chatml.jinja").write_text(options.pop("template", CHATML))
    said: list[str] = []
    values = {
        "type": "chat", "train": ["talks.jsonl"], "val_fraction": 0, "template": "chatml.jinja",
        "tokenizer": {"type": "file", "path": str(tokenizer)}, **options,
    }  # fmt: skip
    return open_data(ChatOptions.model_validate(values), base=Path(), say=said.append), said


def rows_of(split: Any) -> list[tuple[list[int], list[int]]]:
    """(tokens, the numbers of those that are learnt) of each row."""
    batch = split.batch(np.arange(len(split)), 0, 0, True)
    return [
        ([t for t in row.tolist() if t >= 0], torch.nonzero(mask).flatten().tolist())
        for row, mask in zip(batch["tokens"], batch["loss_mask"], strict=True)
    ]


def test_tokens_and_learnt_answers_are_those_of_transformers(tokenizer_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    tagged = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    )
    data, said = opened([{"messages": messages(talk)} for talk in TALKS], tokenizer_file)
    for talk, (tokens, learnt) in zip(TALKS, rows_of(data.split("train")), strict=True):
        kept = messages(talk if talk[-1][0] == "assistant" else talk[:-1])
        found = theirs.apply_chat_template(
            kept, chat_template=tagged, return_dict=True, return_assistant_tokens_mask=True
        )
        assert tokens == list(found["input_ids"])
        assert learnt == [i for i, mask in enumerate(found["assistant_masks"]) if mask]
    assert "each answer with <|im_end|> at its end" in " ".join(said)


def test_a_marked_answer_and_the_filters_arguments_are_understood() -> None:
    text = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|"
        "{{ {'b': 1, 'a': 'ü'} | tojson(sort_keys=true, separators=(',', ':')) }}"
        "{{ 'ü' | tojson(ensure_ascii=true) }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    )
    with Template(text, ByteTokenizer(), "t.jinja", DataError) as template:
        found = template.render([{"role": "user", "content": "<b> & 'c'"}], prompt=False)
    assert found == "<b> & 'c'|" + '{"a":"ü","b":1}"\\u00fc"'


def test_the_common_forms_are_one_and_the_same(tokenizer_file: Path) -> None:
    text = "Name a bird\n\nof two"
    question, answer = messages([("user", text), ("assistant", "an owl")])
    shared = [{"from": "human", "value": text}, {"from": "gpt", "value": "an owl"}]
    parts = {"role": "user", "content": [{"type": "text", "text": text}]}
    forms: list[Any] = [
        {"messages": [question, answer]},
        {"conversations": shared},
        {"instruction": "Name a bird", "input": "of two", "output": "an owl"},
        {"prompt": text, "completion": "an owl"},
        {"messages": [parts, answer]},
    ]
    data, _ = opened(forms, tokenizer_file)
    rows = rows_of(data.split("train"))
    assert all(row == rows[0] for row in rows)
    Path("talks.json").write_text(json.dumps(forms))
    listed, _ = opened(forms, tokenizer_file, train=["talks.json"])
    assert rows_of(listed.split("train")) == rows


def test_turns_that_a_template_changes_later_are_samples_of_their_own(tokenizer_file: Path) -> None:
    talk = messages(
        [("user", "a"), ("assistant", "hm</think>b"), ("user", "c"), ("assistant", "so</think>d")]
    )
    data, said = opened([{"messages": talk}], tokenizer_file, template=DROPS_THOUGHTS)
    rows = rows_of(data.split("train"))
    assert len(rows) == 2
    assert "1 conversation is several samples" in " ".join(said)
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(tokenizer_file))
    texts = [library.decode(row, skip_special_tokens=False) for row, _ in rows]
    learnt = [library.decode([row[i] for i in at], skip_special_tokens=False) for row, at in rows]
    assert learnt == ["hm</think>b<|im_end|>", "so</think>d<|im_end|>"]
    assert "hm" not in texts[1]


def test_questions_have_no_gradient_and_packed_rows_equal_single_ones(tokenizer_file: Path) -> None:
    rng = np.random.default_rng(3)
    samples = []
    for size in (9, 17, 4, 12, 30, 7, 5):
        learnt = rng.random(size) < 0.4
        learnt[0] = False
        samples.append(Sample(rng.integers(0, 50, size).tolist(), learnt.tolist()))
    torch.manual_seed(0)
    block = {
        "mixer": {"type": "attention", "num_heads": 2, "position": {"type": "rotary"}},
        "ffn": {"type": "swiglu"},
    }
    hybrid = {"mixer": {"type": "mamba2", "head_dim": 8, "state": 4}}
    options = DecoderOptions.model_validate(
        {"type": "decoder", "dim": 24, "vocab_size": 50, "max_len": 40, "blocks": [block, hybrid]}
    )
    model = options.build(DatasetInfo(vocab_size=50, context=40)).eval()
    task = CausalLMOptions(type="causal_lm").build()
    sums = []
    for packed in (False, True):
        split = Chat(samples, 40, packed=packed)
        batch = split.batch(np.arange(len(split)), 0, 0, True)
        assert batch["tokens"].shape[1] <= 41
        logits = task.forward(model, batch)
        logits.retain_grad()
        loss, count = task.loss(logits, batch)
        loss.backward()
        learnt = batch["loss_mask"][:, 1:]
        assert bool((logits.grad[~learnt] == 0).all())
        assert bool((logits.grad[learnt] != 0).any(-1).all())
        sums.append((float(loss), int(count)))
    assert sums[0][1] == sums[1][1] == sum(map(sum, (s.learnt for s in samples)))
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
    assert loss_of(task, model, batch)


@pytest.mark.parametrize("seed", range(3))
def test_packing_takes_each_item_once_and_fills_rows(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 100, 700).tolist()
    rows = pack(sizes, 100)
    assert sorted(i for row in rows for i in row) == list(range(700))
    assert all(sum(sizes[i] for i in row) <= 100 for row in rows)
    least = max(-(-sum(sizes) // 100), sum(size > 50 for size in sizes))
    assert len(rows) <= 1.05 * least


FAULTS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no answer": ({"messages": messages([("user", "a")])}, {}, "talks.jsonl:1: no message of the"),
    "no known keys": ({"text": "a"}, {}, "talks.jsonl:1: the keys are text"),
    "spelled token": (
        {"prompt": "a<|im_end|>", "completion": "b"},
        {},
        "talks.jsonl:1: a message has <|im_end|> in it",
    ),
    "too long": (
        {"prompt": "a" * 90, "completion": "b"},
        {"context": 64},
        "would be cut; set data.context: 1",
    ),
    "tool calls": (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]},
        {},
        "a message has tool_calls",
    ),
    "no end": (
        {"prompt": "a", "completion": "b"},
        {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"},
        "no special token ends an answer",
    ),
    "not a beginning": (
        {"prompt": "a", "completion": "b"},
        {"template": "{{ messages | length }}<|im_end|>"},
        "the answer cannot be found",
    ),
    "refusing template": (
        {"prompt": "a", "completion": "b"},
        {"template": "{{ raise_exception('only jokes') }}"},
        "talks.jsonl:1: chatml.jinja: the chat template: only jokes",
    ),
    "syntax": ({"prompt": "a", "completion": "b"}, {"template": "{% if %}"}, "line 1:"),
    "escape": (
        {"prompt": "a", "completion": "b"},
        {"template": "{{ ''.__class__.__mro__ }}"},
        "unsafe",
    ),
    "memory": (
        {"prompt": "a", "completion": "b"},
        {"template": "{% set ns = namespace(a='x' * 1000) %}{% for i in range(40) %}"
         "{% set ns.a = ns.a ~ ns.a %}{% endfor %}"},
        "memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_learnt_is_refused(fault: str, tokenizer_file: Path) -> None:
    row, options, message = FAULTS[fault]
    with pytest.raises(DataError) as raised:
        opened([row], tokenizer_file, **options)
    assert message in str(raised.value)


def test_a_template_that_never_ends_is_stopped() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with (
        pytest.raises(DataError, match="computes for more than"),
        Template(loops, ByteTokenizer(), "t.jinja", DataError) as template,
    ):
        template.render([], prompt=True)


def test_a_model_answers_and_stops(cli: Cli) -> None:
    rows = [{"prompt": f"say {word}", "completion": word * 2} for word in ("ab", "cd", "ef")] * 8
    Path("talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 32, blocks: [{mixer: {type: attention, num_heads: 2,"
        " position: rotary}, ffn: swiglu}]}\n"
        "data: {type: chat, train: [talks.jsonl], context: 64, packing: true, tokenizer: bytes}\n"
        "task: causal_lm\n"
        "train: {steps: 150, batch_size: 4, precision: fp32, optimizer: {type: adamw, lr: 1e-2}}\n"
    )
    result = cli("pretrain", "spec.yaml", "--out", "run")
    assert result.status == 0, result.err
    talk = json.dumps([{"role": "user", "content": "say cd"}])
    answers = cli("predict", "run", "--chat", "--temperature", "0", "say ab", talk)
    assert [json.loads(line)["text"] for line in answers.out.splitlines()] == ["abab", "cdcd"]
    refused = cli("predict", "run", "--chat", json.dumps([{"role": "assistant", "content": "x"}]))
    assert refused.status == 3
    assert "is not one that asks for an answer" in refused.err
