"""The first sample before the first step: what is read and learnt of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.config.dataset import MelConfig
from bigmodel_cli.data.base import DataSet, Split
from bigmodel_cli.data.text.own_tokenizers import ByteTokenizer
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.tasks.shown import Spell
from bigmodel_cli.train.first import say_first

Cli = Callable[..., Any]
NAMES = DatasetInfo(vocab_size=257, context=9, classes=("cat", "dog"))
NUMBERS = DatasetInfo(targets=("price", "size"), target_mean=(1.0, 2.0), target_std=(3.0, 4.0))
END, PAD = 256, -1


def tokens(*texts: str, ends: bool = True) -> torch.Tensor:
    rows = [torch.tensor([*text.encode(), *([END] if ends else [])]) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


SOUND = MelConfig(1000, 40, 20, 2, 0.0, 500.0, 40)
IMAGE = torch.tensor([[[[-1.0, 0.5], [0.25, 2.0]]]])
TEXTS = {"tokens": tokens("a\nb", "abcdef")}
MASKS = torch.tensor([[False, False, True, True, True, True, True], [False] * 7])
FRAMES = {"frames": torch.zeros(2, 6, 4), "lengths": torch.tensor([3, 6])}
CASES: dict[str, tuple[str, DatasetInfo, dict[str, torch.Tensor], list[str]]] = {
    "causal_lm": ("causal_lm", NAMES, TEXTS,
                  ["a»\\nb<|endoftext|>«", "in the first 2 samples 9 of 9 tokens (100.0 %) are"]),
    "answers": ("causal_lm", NAMES, {**TEXTS, "loss_mask": MASKS},
                ["\na\n»b<|endoftext|>«", "2 of 9 tokens (22.2 %) are learnt"]),
    "seq2seq": ("seq2seq", NAMES, {"source": tokens("x\ny", "z"), "target": tokens("uv", "w")},
                ["x\\ny<|endoftext|> -> u»v<|endoftext|>«", "3 of 3 tokens"]),
    "text": ("classification", NAMES, {**TEXTS, "label": torch.tensor([1, 0])},
             ["a\\nb<|endoftext|> -> dog"]),
    "image": ("classification", NAMES, {"image": IMAGE, "label": torch.tensor([0])},
              ["an image of 1 x 2 x 2, values -1 to 2 -> cat"]),
    "spectrogram": ("classification", DatasetInfo(classes=("cat", "dog"), image_shape=(1, 2, 2),
        sound=SOUND), {"image": IMAGE, "label": torch.tensor([0])}, ["a spectrogram of 1 x 2 x 2"]),
    "sound": ("classification", NAMES, {**FRAMES, "label": torch.tensor([1, 1])},
              ["3 frames of 4 numbers -> dog"]),
    "tagging": ("tagging", NAMES, {"tokens": tokens("ab", "c"), "tags": torch.tensor(
        [[0, 1, -1], [-1, -1, -1]])}, ["a[cat] b[dog] <|endoftext|>", "2 of 5 tokens"]),
    "regression": ("regression", NUMBERS, {"image": IMAGE, "numbers": torch.tensor([[2.5, -7.0]])},
                   ["-> price 2.5, size -7"]),
    "multilabel": ("multilabel", DatasetInfo(classes=("x", "y", "z"), label_sets=True),
                   {"image": IMAGE, "labels": torch.tensor([[True, False, True]])}, ["-> x, z"]),
    "ctc": ("ctc", DatasetInfo(classes=("h", "i"), spelling="characters"),
            {**FRAMES, "target": torch.tensor([[0, 1, -1], [1, 1, 0]])}, ["frames of 4", "-> hi"]),
    "masked_image": ("masked_image", DatasetInfo(image_shape=(1, 2, 2)), {"image": IMAGE},
                     ["values -1 to 2 -> 75% of its patches hidden"]),
    "dpo": ("dpo", NAMES, {"tokens": tokens("ab", "ac"), "rejected": tokens("axyz", "aw"),
        "loss_mask": torch.tensor([[False, True, True]] * 2),
        "rejected_mask": torch.tensor([[False] + [True] * 4] * 2)},
        ["\na»b<|endoftext|>«\na»xyz<|endoftext|>«", "10 of 10 tokens"]),
}  # fmt: skip


class Rows(Split):
    """One batch, whatever is asked for."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.rows = batch

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def tensors(
        self, samples: Any, epoch: int, seed: int, augment: bool
    ) -> dict[str, torch.Tensor]:
        return {name: tensor[torch.from_numpy(samples)] for name, tensor in self.rows.items()}


def data_of(info: DatasetInfo, batch: dict[str, torch.Tensor]) -> DataSet:
    assets = {"tokenizer.json": ByteTokenizer().to_json()} if info.vocab_size else {}
    return DataSet(info, "", {"train": Rows(batch)}, assets, {}, "rows", False)


def task_of(kind: str, info: DatasetInfo, **more: Any) -> Any:
    return TASKS[kind].model_validate({"type": kind, **more}).build(info)


@pytest.mark.parametrize("case", [name for name in CASES if name != "dpo"])
def test_what_is_learnt_is_shown(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, info, batch, wanted = CASES[case]
    say_first(task_of(kind, info), data_of(info, batch), 0)
    said = capsys.readouterr().err
    assert said.startswith("the first sample, as it is learnt:")
    assert all(text in said for text in wanted), said


def test_of_a_preference_both_answers_are_shown() -> None:
    kind, info, batch, wanted = CASES["dpo"]
    found = task_of(kind, info).shown(
        batch, Spell(lambda name, row: ByteTokenizer().decode_marked(row))
    )
    assert f"\n{found.first}" == wanted[0]
    assert (found.count, found.of) == (10, 10)  # each side's answers and their ends


def test_hidden_tokens_are_marked_and_those_that_may_be_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    batch = {"tokens": tokens("abcdefgh", "xy")}
    task = task_of("masked_lm", NAMES, mask_prob=0.4)
    data = data_of(NAMES, batch)
    say_first(task, data, 5)
    said = capsys.readouterr().err
    rows = data.split("train").batch(np.arange(2), 0, 5, True)
    at = task.chosen(rows[KEY], batch["tokens"][:, :-1], None)[0].tolist()
    hidden = [c for c, chosen in zip("abcdefgh", at, strict=False) if chosen]
    assert 0 < len(hidden) < 8
    parts = [part.partition("«")[0] for part in said.splitlines()[0].split("»")[1:]]
    assert "".join(parts) == "".join(hidden)
    assert "11 of 11 tokens (100.0 %) may be hidden and are then learnt (40% of them)" in said


@pytest.mark.parametrize(
    ("kind", "batch", "message"),
    [
        ("causal_lm", {**TEXTS, "loss_mask": MASKS & False}, "nothing is learnt of the first 2"),
        ("causal_lm", {**TEXTS, "loss_mask": MASKS | True}, "every token of the first 2 samples"),
        ("tagging", {**TEXTS, "tags": torch.full((2, 7), -1)}, "nothing is learnt"),
        ("masked_lm", {**TEXTS, "words": torch.full((2, 7), -1)}, "nothing is learnt"),
    ],
)
def test_none_and_all_are_refused(kind: str, batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        say_first(task_of(kind, NAMES), data_of(NAMES, batch), 0)


def test_dry_runs_and_runs_show_it_and_resumes_do_not(decoder_spec: Path, cli: Cli) -> None:
    words = ["--set", "train.steps=1"]
    for more in (["--dry-run"], ["--out", "run"]):
        result = cli("pretrain", decoder_spec, *words, *more)
        assert result.status == 0, result.err
        assert "the first sample, as it is learnt: " in result.err
    again = cli("pretrain", "--resume", "--out", "run", "--set", "train.steps=2")
    assert again.status == 0, again.err
    assert "the first sample" not in again.err


def test_chats_are_shown_with_their_answers_marked(cli: Cli) -> None:
    Path("chats.jsonl").write_text(
        "\n".join(json.dumps({"prompt": f"p{i}", "completion": f"c{i}"}) for i in range(6))
    )
    Path("spec.yaml").write_text(
        "model: {type: decoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
        "data: {type: chat, train: [chats.jsonl], context: 64, tokenizer: bytes}\n"
        "task: causal_lm\ntrain: {steps: 1, batch_size: 2}\n"
    )
    result = cli("pretrain", "spec.yaml", "--dry-run")
    assert result.status == 0, result.err
    assert "\n### User:\np" in result.err
    assert "\n### Assistant:\n»c" in result.err
    assert "<|endoftext|>«" in result.err
