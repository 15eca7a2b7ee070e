"""Faults of a finetuning that other tools train through in silence: each is refused before the
first step, with its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Cli = Callable[..., Any]
SPEC = """\
model:
  type: decoder
  dim: 16
  max_len: 64
  tie_embeddings: false
  norm: rmsnorm
  blocks:
    - repeat: 2
      mixer: {type: attention, num_heads: 2, bias: false, position: rotary}
      ffn: {type: swiglu, hidden: 24}
      norm: rmsnorm
data: {type: chat, train: [chats.jsonl], context: 48, tokenizer: bytes}
task: causal_lm
train: {steps: 2, batch_size: 4, precision: fp32, memory_format: contiguous, compile: "off"}
"""
CHATS = [{"prompt": f"say {w}", "completion": w} for w in ("a", "b", "c", "d", "e", "f")] * 3


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of a tiny decoder, and the same as a folder of Hugging Face's layout."""
    import os

    from bigmodel_cli.cli import app

    place = tmp_path_factory.mktemp("silent")
    before = Path.cwd()
    os.chdir(place)
    try:
        Path("chats.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
        Path("spec.yaml").write_text(SPEC)
        for words in (
            ["pretrain", "spec.yaml", "--out", "base", "--device", "cpu"],
            ["export", "base", "hf"],
        ):
            app(words, standalone_mode=False)
        yield place
    finally:
        os.chdir(before)


@pytest.fixture
def base(made: Path) -> Path:
    """A copy of it, to be damaged, in the current folder."""
    for name in ("base", "hf"):
        shutil.copytree(made / name, name, symlinks=True)
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    Path("spec.yaml").write_text(SPEC)
    return Path("base")


def rows(*values: dict[str, Any], name: str = "bad.jsonl") -> str:
    Path(name).write_text("\n".join(map(json.dumps, [*CHATS, *values])))
    return f"data.train=[{name}]"


def template(text: str) -> str:
    Path("t.jinja").write_text(text)
    return "data.template=t.jinja"


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file("hf/model.safetensors")
    change(tensors)
    save_file(tensors, "hf/model.safetensors", {"format": "pt"})


def edit_config(**values: Any) -> None:
    config = json.loads(Path("hf/config.json").read_text())
    Path("hf/config.json").write_text(json.dumps({**config, **values}))


def preferences(better: str, worse: str) -> list[str]:
    pairs = [{"prompt": "say a", "chosen": better, "rejected": worse}]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs * 8)))
    return ["data={type: preferences, train: [pairs.jsonl], context: 48, tokenizer: bytes}"]


def no_answer(base: Path) -> list[str]:
    return [rows({"messages": [{"role": "user", "content": "hello"}]})]


def every_token_learnt(base: Path) -> list[str]:
    return [template("{% for m in messages if m.role == 'assistant' %}{{ m.content }}"
                     "{{ eos_token }}{% endfor %}")]  # fmt: skip


def no_end_of_answers(base: Path) -> list[str]:
    return [template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                     "{% if add_generation_prompt %}assistant: {% endif %}")]  # fmt: skip


def prompt_of_another_form(base: Path) -> list[str]:
    return [template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}"
                     "{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}")]  # fmt: skip


def questions_left_out(base: Path) -> list[str]:
    return [template("{% for m in messages if m.role == 'assistant' %}[A]{{ m.content }}"
                     "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}"
                     "[A]{% endif %}")]  # fmt: skip


def markup_in_messages(base: Path) -> list[str]:
    return [rows({"prompt": "a<|endoftext|>", "completion": "b"})]


def cut_answers(base: Path) -> list[str]:
    return [rows({"prompt": "a", "completion": "b" * 60})]


def tool_calls(base: Path) -> list[str]:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    return [rows({"messages": [{"role": "user", "content": "a"}, call]})]


def adapter_without_match(base: Path) -> list[str]:
    return ["adapter={type: lora, targets: ['*.q_proj']}"]


def freeze_without_match(base: Path) -> list[str]:
    return ["init.freeze=['layers.0.*']"]


def all_frozen(base: Path) -> list[str]:
    return ["init.freeze=['*']"]


def equal_preferences(base: Path) -> list[str]:
    return ["task=dpo", *preferences("a", "a")]


def preferences_for_another_task(base: Path) -> list[str]:
    return preferences("a", "b")


def dpo_without_pairs(base: Path) -> list[str]:
    return ["task=dpo"]


def teacher_of_other_tokens(base: Path) -> list[str]:
    return ["distill={teacher: base}", "data.tokenizer={type: bpe, vocab_size: 260}"]


def teacher_of_another_width(base: Path) -> list[str]:
    return ["distill={teacher: base, hidden: 1.0}", "model.dim=24"]


def nan_weights(base: Path) -> list[str]:
    edit_weights(lambda t: t["model.norm.weight"].fill_(float("nan")))
    return []


def lost_tensor(base: Path) -> list[str]:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    edit_weights(lose)
    return []


def renamed_tensor(base: Path) -> list[str]:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    edit_weights(rename)
    return []


def further_tensor(base: Path) -> list[str]:
    edit_weights(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(24, 16)}))
    return []


def integer_weights(base: Path) -> list[str]:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(lambda t: t.update({name: t[name].to(torch.int8)}))
    return []


def unknown_option(base: Path) -> list[str]:
    edit_config(attention_temperature_tuning=True)
    return []


def head_that_is_said_to_be_tied(base: Path) -> list[str]:
    edit_config(tie_word_embeddings=True)
    return []


def more_tokens_than_rows(base: Path) -> list[str]:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:200].clone()

    edit_weights(cut)
    edit_config(vocab_size=200)
    return []


def replay_of_nothing(base: Path) -> list[str]:
    return ["data.replay={share: 0.2, spec: gone.yaml}"]


FAULTS: dict[Callable[[Path], list[str]], tuple[int, str]] = {
    no_answer: (3, "bad.jsonl:19: no message of the assistant"),
    every_token_learnt: (3, "the question is not in the text"),
    no_end_of_answers: (3, "no special token ends an answer"),
    prompt_of_another_form: (3, "the answer cannot be found"),
    questions_left_out: (3, "the question is not in the text that it writes"),
    markup_in_messages: (3, "bad.jsonl:19: a message has <|endoftext|> in it"),
    cut_answers: (3, "answers would be cut"),
    tool_calls: (3, "bad.jsonl:19: a message has tool_calls"),
    adapter_without_match: (2, "*.q_proj"),
    freeze_without_match: (2, "matches no weight"),
    all_frozen: (2, "every weight is frozen"),
    equal_preferences: (3, "pairs.jsonl:1: chosen and rejected are the same"),
    preferences_for_another_task: (2, "task.type: dpo"),
    dpo_without_pairs: (2, "use data.type: preferences"),
    teacher_of_other_tokens: (2, "tokenizer"),
    teacher_of_another_width: (2, "model.dim"),
    nan_weights: (4, "not finite"),
    lost_tensor: (4, "model.layers.1.mlp.up_proj.weight: missing"),
    renamed_tensor: (4, "model.layers.1.mlp.up"),
    further_tensor: (4, "model.layers.2.mlp.up_proj.weight"),
    integer_weights: (4, "model.layers.0.mlp.up_proj.weight"),
    unknown_option: (4, "attention_temperature_tuning"),
    head_that_is_said_to_be_tied: (4, "lm_head.weight"),
    more_tokens_than_rows: (4, "200"),
    replay_of_nothing: (2, "gone.yaml: no such file"),
}
OF_FOLDERS = {
    *(nan_weights, lost_tensor, renamed_tensor, further_tensor, integer_weights),
    *(unknown_option, head_that_is_said_to_be_tied, more_tokens_than_rows),
}
OF_TEACHERS = {teacher_of_other_tokens, teacher_of_another_width}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_silent_fault_is_refused_before_the_first_step(
    fault: Callable[[Path], list[str]], base: Path, cli: Cli
) -> None:
    changes = fault(base)
    source = "hf" if fault in OF_FOLDERS else base
    command = ["pretrain"] if fault in OF_TEACHERS else ["finetune", "--from", source]
    result = cli(*command, "spec.yaml", "--out", "run", *sets(*changes))
    status, message = FAULTS[fault]
    assert (result.status, message in result.err) == (status, True), result.err
    assert not Path("run/checkpoints").exists()
    assert not Path("run/metrics.jsonl").exists()


def test_an_adapter_without_a_part_that_it_names_is_refused(base: Path, cli: Cli) -> None:
    lora = "adapter={type: lora, rank: 2, targets: ['*.qkv.q']}"
    made = cli("finetune", "--from", base, "spec.yaml", "--out", "lora", *sets(lora))
    assert made.status == 0, made.err
    assert cli("export", "lora", "peft", "--to", "adapter").status == 0
    config = json.loads(Path("peft/adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj"]
    Path("peft/adapter_config.json").write_text(json.dumps(config))
    words = ("spec.yaml", "--out", "run", *sets("adapter={type: peft, path: peft}"))
    result = cli("finetune", "--from", base, *words)
    assert result.status == 4
    assert "layers.0.self_attn.v_proj: no tensors, and adapter_config.json names it" in result.err
    assert not Path("run/checkpoints").exists()
    config["layers_to_transform"] = [0]  # the tensors say what is adapted
    Path("peft/adapter_config.json").write_text(json.dumps(config))
    assert cli("finetune", "--from", base, *words).status == 0


def test_what_is_learnt_of_nothing_or_without_its_system_message_is_said(
    base: Path, cli: Cli
) -> None:
    told = {"role": "system", "content": "be brief"}
    asked = {"role": "user", "content": "hello"}
    empty = {"role": "assistant", "content": " "}
    changes = [
        rows({"messages": [told, asked, empty]}, {"prompt": "b", "completion": ""}),
        template(
            "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}"
            "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        ),
    ]
    result = cli("finetune", "--from", base, "spec.yaml", "--out", "run", *sets(*changes))
    assert result.status == 0, result.err
    assert "2 answers are learnt that say nothing, the first in bad.jsonl:19" in result.err
    assert "the chat template leaves out messages of system" in result.err


def test_without_a_fault_it_trains(base: Path, cli: Cli) -> None:
    for source in (base, "hf"):
        result = cli("finetune", "--from", source, "spec.yaml", "--out", f"run-{source}")
        assert result.status == 0, result.err
