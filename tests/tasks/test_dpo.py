"""Preferences: the loss by its formula, pairs in files, a run that learns them, what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import losses
from safetensors.torch import load_file

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import open_data
from bigmodel_cli.data.chat.options import PreferencesOptions
from bigmodel_cli.models import MODELS
from bigmodel_cli.tasks.causal_lm import CausalLMOptions
from bigmodel_cli.tasks.dpo import DPOOptions

Cli = Callable[..., Any]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def built(seed: int) -> Any:
    torch.manual_seed(seed)
    block = {"repeat": 2, "mixer": {"type": "attention", "num_heads": 3}, "ffn": "swiglu"}
    options = {"type": "decoder", "dim": 15, "vocab_size": 257, "max_len": 80, "blocks": [block]}
    model = MODELS["decoder"].model_validate(options).build(DatasetInfo(vocab_size=257, context=80))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def opened(rows: list[Any], **options: Any) -> Any:
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"type": "preferences", "train": ["pairs.jsonl"], "val_fraction": 0, "context": 80}
    values |= {"tokenizer": {"type": "bytes"}, **options}
    return open_data(
        PreferencesOptions.model_validate(values), base=Path(), say=lambda _: None
    ).split("train")


ROWS: list[Any] = [
    {"prompt": "one", "chosen": "yes", "rejected": "not at all"},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "two?"}],
        "chosen": [{"role": "assistant", "content": "a longer one"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    },
    {
        "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}],
    },
]


@pytest.mark.parametrize(("beta", "smoothing", "nll"), [(0.1, 0.0, 0.0), (0.6, 0.2, 0.5)])
def test_the_loss_is_that_of_the_formula(beta: float, smoothing: float, nll: float) -> None:
    split = opened(ROWS)
    policy, reference = built(1), built(2)
    task = DPOOptions(beta=beta, label_smoothing=smoothing, nll=nll).build()
    task.reference = reference
    batch = split.batch(np.arange(3), 0, 0, True)
    outputs = task.forward(policy, batch)
    total, count = task.loss(outputs, batch)
    total.backward()
    assert all(p.grad is None for p in reference.parameters())

    def log_p(model: Any, sample: Any) -> tuple[float, int]:
        """Of one answer, alone, token by token."""
        tokens = torch.tensor([sample.tokens])
        log = model(tokens[:, :-1])[0].log_softmax(-1)
        at = [i for i, learnt in enumerate(sample.learnt) if learnt]
        return sum(float(log[i - 1, sample.tokens[i]]) for i in at), len(at)

    wanted = 0.0
    margins = []
    for better, worse in split.pairs:
        (pc, n), (pr, _) = log_p(policy, better), log_p(policy, worse)
        margin = beta * (pc - pr - log_p(reference, better)[0] + log_p(reference, worse)[0])
        margins.append(margin)
        sigmoid = 1 / (1 + math.exp(-margin))
        wanted += -(1 - smoothing) * math.log(sigmoid) - smoothing * math.log(1 - sigmoid)
        wanted -= nll * pc / n
    assert int(count) == 3
    assert float(total) == pytest.approx(wanted, rel=1e-4)
    scores, _ = task.score(outputs, batch)
    assert scores["margin"][0].tolist() == pytest.approx(margins, rel=1e-3, abs=1e-5)
    assert scores["accuracy"][0].tolist() == [float(m > 0) for m in margins]


def counted(task: Any, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """The tokens of each expert that some batches had."""
    block = {"mixer": {"type": "attention", "num_heads": 3}, "ffn": {"type": "moe", "experts": 4}}
    options = {"type": "decoder", "dim": 15, "vocab_size": 257, "max_len": 80, "blocks": [block]}
    torch.manual_seed(4)
    model = MODELS["decoder"].model_validate(options).build(DatasetInfo(vocab_size=257, context=80))
    for batch in batches:
        task.forward(model.train(), batch)
    experts: Any = model.get_submodule("blocks.0.ffn")
    return list(experts.load.tolist())


def test_experts_count_both_answers_whatever_the_neighbours_are() -> None:
    split = opened(ROWS)
    task = DPOOptions().build()
    task.reference = built(2)
    batch = split.batch(np.arange(3), 0, 0, True)
    whole = counted(task, [batch])
    sides = [sample for pair in split.pairs for sample in pair]
    assert sum(whole) == 2 * sum(len(sample.tokens) - 1 for sample in sides)  # two experts each
    assert counted(task, [split.batch(np.array([i]), 0, 0, True) for i in range(3)]) == whole
    text = CausalLMOptions().build()
    rows = [{"tokens": batch["tokens"][i : i + 1]} for i in range(3)]
    alone = [{"tokens": row["tokens"][:, row["tokens"][0] >= 0]} for row in rows]
    assert counted(text, [{"tokens": batch["tokens"]}]) == counted(text, alone)


def test_only_the_last_answer_is_learnt() -> None:
    split = opened(ROWS)
    samples = [sample for pair in split.pairs for sample in pair]
    learnt = [np.array(sample.tokens)[sample.learnt].tolist() for sample in samples]
    assert all(tokens[-1] == 256 for tokens in learnt)
    texts = [bytes(tokens[:-1]).decode() for tokens in learnt]
    assert texts == ["yes", "not at all", "a longer one", "b", "y", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "a preference has prompt, chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        (
            {"chosen": ROWS[2]["chosen"], "rejected": [{"role": "assistant", "content": "z"}]},
            "do not answer the same question",
        ),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "neither a text nor a list"),
    ],
)
def test_rows_that_are_no_preferences_are_refused(row: Any, message: str) -> None:
    from bigmodel_cli.errors import DataError

    with pytest.raises(DataError, match=message):
        opened([row])


def test_a_model_learns_what_is_preferred(cli: Cli) -> None:
    words = ("owl", "cat", "dog", "bee")
    chats = [{"prompt": f"a {w}", "completion": e} for w in words for e in ("yes", "no")] * 4
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    pairs = [{"prompt": f"a {w}", "chosen": "no", "rejected": "yes"} for w in words] * 6
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 32, norm: rmsnorm, blocks: [{mixer: {type: attention,"
        " num_heads: 2, bias: false, position: rotary}, ffn: swiglu, norm: rmsnorm}]}\n"
        "data: {type: chat, train: [chats.jsonl], context: 48, tokenizer: bytes}\n"
        "task: causal_lm\n"
        "train: {steps: 150, batch_size: 8, precision: fp32, optimizer: {type: adamw, lr: 5e-3}}\n"
    )
    base = cli("pretrain", "spec.yaml", "--out", "base").out.strip()
    Path("dpo.yaml").write_text(
        "data: {type: preferences, train: [pairs.jsonl], context: 48, tokenizer: bytes}\n"
        "task: {type: dpo, beta: 0.5, nll: 0.5}\n"
        "train: {steps: 12, batch_size: 4, precision: fp32, optimizer: {type: adamw, lr: 2e-3}}\n"
    )
    result = cli("finetune", "--from", base, "dpo.yaml", "--out", "tuned", "--json")
    assert result.status == 0, result.err
    gains = json.loads(result.out)["gains"]
    gain = gains["task"]["metrics"]["accuracy"]["gain"]
    assert (gain["first"], gain["second"]) == (0.5, 1.0)
    assert "loss" in gains["old_domain"]["metrics"]
    answers = cli("predict", "tuned", "--chat", "--temperature", "0", *(f"a {w}" for w in words))
    assert {json.loads(line)["text"] for line in answers.out.splitlines()} == {"no"}
    cli("finetune", "--from", base, "dpo.yaml", "--out", "half", *sets("train.steps=6"))
    resumed = cli("finetune", "--resume", "--out", "half", *sets("train.steps=12"))
    assert resumed.status == 0, resumed.err
    assert losses(Path("half"))[12] == losses(Path("tuned"))[12]
    exported = cli("export", "tuned", "hf")
    assert exported.status == 0, exported.err
    assert json.loads(Path("hf/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert "### Assistant:" in Path("hf/chat_template.jinja").read_text()
    again = cli("predict", "hf", "--chat", "--temperature", "0", "a dog")
    assert json.loads(again.out)["text"] == "no"
    refused = cli("pretrain", "dpo.yaml", *sets("model=" + json.dumps({"type": "decoder"})))
    assert refused.status == 2
    alone = cli("pretrain", "spec.yaml", *sets("data.type=preferences", "task=dpo"))
    assert alone.status in (2, 3)


def test_the_head_of_the_language_model_is_kept(cli: Cli) -> None:
    """Also where it has a matrix of its own; and so it is when the answers are learnt again."""
    rows = [{"prompt": f"a {i}", "chosen": "no", "rejected": "yes"} for i in range(8)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"prompt": f"a {i}", "completion": "no"} for i in range(8)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    still = "train: {steps: 1, batch_size: 4, precision: fp32, optimizer: {type: sgd, lr: 1e-30}}\n"
    chat = "data: {type: chat, train: [chats.jsonl], context: 48, tokenizer: bytes}\n"
    chat += "task: causal_lm\n"
    pairs = "data: {type: preferences, train: [pairs.jsonl], context: 48, tokenizer: bytes}\n"
    model = (
        "model: {type: decoder, dim: 8, tie_embeddings: false, blocks: [{mixer: {type: attention,"
        " num_heads: 2}, ffn: swiglu}]}\n"
    )
    Path("a.yaml").write_text(model + chat + still)
    Path("b.yaml").write_text(f"{pairs}task: dpo\n{still}")
    Path("c.yaml").write_text(chat + still)
    found = [cli("pretrain", "a.yaml", "--out", "a")]
    for before, name in (("a", "b"), ("b", "c")):
        found.append(cli("finetune", "--from", before, f"{name}.yaml", "--out", name))
    heads = [load_file(Path(result.out.strip(), "model.safetensors")) for result in found]
    assert all("newly initialised" not in result.err for result in found)
    for tensors in heads[1:]:
        assert torch.equal(tensors["head.weight"], heads[0]["head.weight"])


def test_a_smaller_network_is_compared_with_the_layers_that_it_begins_with(cli: Cli) -> None:
    rows = [{"prompt": f"a {i}", "chosen": "no", "rejected": "yes"} for i in range(8)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"prompt": f"a {i}", "completion": "no"} for i in range(8)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    Path("a.yaml").write_text(
        "model: {type: decoder, dim: 8, blocks: [{repeat: 3, mixer: {type: attention,"
        " num_heads: 2}, ffn: swiglu}]}\n"
        "data: {type: chat, train: [chats.jsonl], context: 48, tokenizer: bytes}\n"
        "task: causal_lm\n"
        "train: {steps: 2, batch_size: 4, precision: fp32, compile: 'off'}\n"
    )
    Path("b.yaml").write_text(
        "data: {type: preferences, train: [pairs.jsonl], context: 48, tokenizer: bytes}\n"
        "task: dpo\ninit: {layers: [2, 0]}\n"
        "train: {steps: 1, batch_size: 4, precision: fp32, compile: 'off',"
        " optimizer: {type: sgd, lr: 1e-12, momentum: 0}}\n"
    )
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    result = cli("finetune", "--from", "a", "b.yaml", "--out", "b", "--json")
    assert result.status == 0, result.err
    loss = json.loads(result.out)["gains"]["task"]["metrics"]["loss"]
    # nothing moved: both answers are as likely as they were, and the loss is log 2
    assert loss["after"]["value"] == pytest.approx(math.log(2), abs=1e-6)
    # and again, from what began so
    Path("c.yaml").write_text(Path("b.yaml").read_text().replace("init: {layers: [2, 0]}\n", ""))
    result = cli("finetune", "--from", "b", "c.yaml", "--out", "c", "--json")
    assert result.status == 0, result.err
    assert "gain" in json.loads(result.out)["gains"]["task"]["metrics"]["loss"], result.err


def test_answers_in_bf16_are_compared_by_logits_in_fp32() -> None:
    batch = opened(ROWS).batch(np.arange(3), 0, 0, True)
    task = DPOOptions().build()
    networks = [built(2), built(5)]
    for network in networks:
        torch.nn.init.normal_(network.head.weight, std=4.0)
        for weight in network.parameters():
            weight.data = weight.data.bfloat16().float()
    task.reference = copy.deepcopy(networks[0]).double()
    with torch.no_grad():
        exact = task.forward(copy.deepcopy(networks[1]).double(), batch, training=False)
        task.reference = networks[0]
        with torch.autocast("cpu", torch.bfloat16):
            learnt = task.forward(networks[1], batch)
            scored = task.forward(networks[1], batch, training=False)
    errors = [
        float((torch.stack(found) - torch.stack(exact)).square().mean().sqrt())
        for found in (learnt, scored)
    ]
    assert errors[1] < 0.8 * errors[0]
