"""Options that would do nothing are refused, and two models are compared only by what counts the
same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from bigmodel_cli.data.inputs import Windows
from bigmodel_cli.data.prompts import Prompts
from bigmodel_cli.data.text.documents import TextOptions
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.evaluation.evaluator import means
from bigmodel_cli.lazy import torch
from bigmodel_cli.metrics.text import NORMALISED, wer
from bigmodel_cli.tasks.ctc import CTCOptions

Cli = Callable[..., Result]
TRAIN = (
    "train: {steps: 1, batch_size: 4, precision: fp32, memory_format: contiguous, compile: 'off'}\n"
)
BLOCKS = "dim: 16, position: {type: learned}, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"


def write(name: str, model: str, task: str, tokenizer: str, label: str = "") -> None:
    """A spec over a.tsv."""
    Path(name).write_text(
        f"model: {{type: {model}, {BLOCKS}data: {{type: table, train: [a.tsv], text: [0]{label},"
        f" context: 40, tokenizer: {tokenizer}}}\ntask: {{type: {task}}}\n{TRAIN}"
    )


def test_only_metrics_of_the_same_unit_are_compared(cli: Cli) -> None:
    rng = random.Random(5)
    rows = [
        " ".join(rng.choices(["plot", "good", "film", "a", "bad"], k=rng.randint(1, 5)))
        for _ in range(60)
    ]
    Path("a.tsv").write_text("".join(f"{row}\t{i % 2}\n" for i, row in enumerate(rows)))
    bpe = "{type: bpe, vocab_size: 270}"
    write("bytes.yaml", "decoder", "causal_lm", "{type: bytes}")
    write("bpe.yaml", "decoder", "causal_lm", bpe)
    write("masked.yaml", "encoder", "masked_lm", bpe)
    write("labels.yaml", "encoder", "classification", bpe, ", label: 1")
    for name in ("bytes", "bpe", "masked", "labels"):
        assert cli("pretrain", f"{name}.yaml", "--out", name).status == 0

    # Nats per byte and per piece of BPE are not of one unit; nor are those of two tasks.
    other = cli("eval", "bytes", "--compare", "bpe")
    assert other.status == 2
    assert (
        "not compared, since the two tokenizers count other tokens: loss, accuracy, perplexity"
        in other.err
    )
    tasks = cli("eval", "bpe", "--compare", "masked")
    assert (tasks.status, "different tasks: causal_lm and masked_lm" in tasks.err) == (2, True)
    same = json.loads(cli("eval", "bpe", "--compare", "bpe", "--json").out)["differences"]
    assert {"loss", "perplexity"} <= same.keys()

    for arguments, option, where in (
        (["labels", "--metric", "wer"], "--metric", "without --rescore"),
        (["labels", "--limit", 3], "--limit", "without --tasks"),
        (["bpe", "--tasks", "x", "--predictions", "s.jsonl"], "--predictions", "the harness"),
        (["--rescore", "s.jsonl", "--compare", "bpe"], "--compare", "a file of predictions"),
    ):
        refused = cli("eval", *arguments)
        assert (refused.status, f"{option} has no effect" in refused.err, where in refused.err) == (
            2,
            True,
            True,
        )
    for option, value in (("--max-tokens", 3), ("--beams", 2), ("--top-k", 4)):
        refused = cli("predict", "labels", option, value, "good")
        assert (refused.status, f"{option} is for models that write text" in refused.err) == (
            2,
            True,
        )


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends_within_a_prompt_are_those_of_training(end: str) -> None:
    tokenizer = ByteTokenizer()
    options = TextOptions.model_validate({"type": "text", "files": ["x"], "context": 8})
    for reader in (Prompts(tokenizer, 8, options), Windows(tokenizer, 8)):
        assert reader.read(f"a{end}b", "line 1")[0] == [97, 10, 98]


def test_error_rates_that_a_task_scores_say_how() -> None:
    scores = {name: (torch.zeros(2), torch.ones(2)) for name in ("wer", "cer", "loss")}
    assert {name: m.signature for name, m in means(CTCOptions().build(), scores).items()} == {
        "wer": NORMALISED,
        "cer": NORMALISED,
        "loss": "",
    }
    # Hebrew's own apostrophe
    assert wer(["\u05e6\u05f3\u05d9\u05e4\u05e1"], ["\u05e6'\u05d9\u05e4\u05e1"]).total() == 0
