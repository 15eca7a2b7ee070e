"""CTC: the loss is the sum over all alignments, error rates are jiwer's, and an encoder learns to
write down tones.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, loss_of, scores_of
from tones import packed, riff, tone
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks.ctc import (
    CTCOptions,
    edit_distance,
    negative_log_likelihood,
    spell_units,
    text_of,
)

Cli = Callable[..., Result]


class Fixed(nn.Module):
    """Gives these logits for any frames; every vector of T' is real but for `padding`."""

    def __init__(self, logits: Tensor, padding: int = 0) -> None:
        super().__init__()
        self.logits, self.padding = logits, padding

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.logits

    def out_lengths(self, lengths: Tensor) -> Tensor:
        return torch.full_like(lengths, self.logits.shape[1] - self.padding)


def collapse(path: tuple[int, ...], blank: int) -> list[int]:
    return [unit for unit, _ in itertools.groupby(path) if unit != blank]


def test_the_loss_is_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 3, dtype=torch.float64)
    target = torch.tensor([[0, 1], [1, 1], [0, -1]])
    lengths = torch.tensor([5, 4, 3])
    ours = negative_log_likelihood(logits, lengths, target)
    for row in range(3):
        n, logs = int(lengths[row]), logits[row].log_softmax(-1)
        wanted = [u for u in target[row].tolist() if u >= 0]
        paths = [p for p in itertools.product(range(3), repeat=n) if collapse(p, 2) == wanted]
        total = torch.stack([logs[range(n), p].sum() for p in paths]).logsumexp(0)
        assert float(ours[row]) == pytest.approx(-float(total), rel=1e-9)


def batch(target: Tensor) -> dict[str, Tensor]:
    return {
        "frames": torch.zeros(len(target), 8, 4),
        "lengths": torch.full((len(target),), 8),
        "target": target,
    }


def test_loss_sums_over_recordings_and_counts_units_also_in_bf16() -> None:
    torch.manual_seed(0)
    target = torch.tensor([[0, 1, 2], [2, -1, -1]])
    logits = torch.randn(2, 8, 4, requires_grad=True)
    task = CTCOptions().build(DatasetInfo(classes=("a", "b", "c"), spelling="words"))
    loss, count = loss_of(task, Fixed(logits), batch(target))
    expected = nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), target.clamp(min=0), torch.tensor([8, 8]),
        torch.tensor([3, 1]),
        blank=3, reduction="sum",
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert int(count) == 4
    half, _ = loss_of(task, Fixed(logits.bfloat16()), batch(target))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(loss.item(), rel=1e-2)


def test_a_transcript_longer_than_its_recording_is_refused() -> None:
    logits = torch.zeros(2, 4, 3)
    negative_log_likelihood(
        logits, torch.tensor([4, 3]), torch.tensor([[0, 1, 0, 1], [0, 0, -1, -1]])
    )
    with pytest.raises(
        DataError,
        match=r"of 3 units needs 4 vectors, and its recording gives 3; lower model.frontend",
    ):
        negative_log_likelihood(logits, torch.tensor([4, 3]), torch.tensor([[0, 1, -1], [0, 0, 1]]))


def test_greedy_text() -> None:
    units = ("a", "b", " ")
    path = torch.tensor([[3, 0, 0, 3, 0, 2, 2, 1, 3, 1], [2, 0, 2, 3, 2, 1, 2, 1, 1, 1]])
    logits = nn.functional.one_hot(path, 4).float()
    assert text_of(logits, torch.tensor([10, 6]), units, "characters") == ["aa bb", "a b"]
    assert text_of(logits, torch.tensor([3, 1]), ("one", "two", "three"), "words") == [
        "one",
        "three",
    ]
    assert text_of(logits[:, :1], torch.tensor([1, 0]), units, "characters") == ["", ""]
    assert spell_units([1, 0], ("one", "two"), "words") == "two one"


def test_error_rates_are_jiwers() -> None:
    jiwer = pytest.importorskip("jiwer")
    rng = random.Random(0)
    units = tuple("ab cd ")[:5]
    said = ["".join(rng.choices("abcd  ", k=rng.randint(3, 20))).strip() or "a" for _ in range(60)]
    said = [" ".join(text.split()) for text in said]
    target = torch.full((60, 20), -1)
    for row, text in enumerate(said):
        target[row, : len(text)] = torch.tensor([units.index(c) for c in text])
    torch.manual_seed(1)
    logits = torch.randn(60, 40, 6) + 3 * nn.functional.one_hot(torch.randint(6, (60, 40)), 6)
    task = CTCOptions().build(DatasetInfo(classes=units, spelling="characters"))
    model = Fixed(logits)
    scores = scores_of(task, model, batch(target))
    written = text_of(logits, torch.full((60,), 40), units, "characters")
    for name, theirs in (("wer", jiwer.wer), ("cer", jiwer.cer)):
        sums, counts = scores[name]
        assert float(sums.sum()) / int(counts.sum()) == pytest.approx(
            theirs(said, written), rel=1e-12
        )
        for i in range(10):
            assert float(sums[i]) / int(counts[i]) == pytest.approx(
                theirs(said[i], written[i]), rel=1e-12
            )


def test_edit_distance_equals_the_plain_recursion() -> None:
    def plain(a: str, b: str) -> int:
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
            if not i or not j:
                table[i, j] = i + j
            else:
                table[i, j] = min(
                    table[i - 1, j] + 1,
                    table[i, j - 1] + 1,
                    table[i - 1, j - 1] + (a[i - 1] != b[j - 1]),
                )
        return int(table[-1, -1])

    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 8))) for _ in range(2))
        assert edit_distance(a, b) == plain(a, b), (a, b)


SPEC = """\
model:
  type: encoder
  dim: 32
  init_std: 0.1
  frontend: {type: conv, stride: 4}
  blocks: [{repeat: 2, mixer: {type: attention, num_heads: 2, position: {type: rotary}},
    ffn: {type: gelu}}]
data:
  type: audio
  files: [sounds]
  pattern: '(?P<label>[a-z]+)_(?P<index>[0-9]+)\\.wav$'
  split: {test: {index: [0, 1]}}
  units: words
  join: {least: 2, most: 4, pause: [0.05, 0.1]}
  rate: 8000
  mels: 24
task: {type: ctc}
train: {steps: 220, batch_size: 12, optimizer: {lr: 4e-3}, schedule: {type: cosine, warmup: 20},
  max_grad_norm: 1.0, precision: fp32}
"""


def write() -> None:
    """Three tones, told apart by their pitch."""
    Path("sounds").mkdir()
    for name, hertz in (("low", 300), ("middle", 900), ("high", 2000)):
        for index in range(7):
            content = riff(packed(tone(8000, 0.15 + 0.01 * index, hertz + 10 * index), "16"))
            Path("sounds", f"{name}_{index}.wav").write_bytes(content)
    Path("ctc.yaml").write_text(SPEC)


def test_an_encoder_learns_to_write_down_strings_of_tones(cli: Cli) -> None:
    write()
    trained = cli("pretrain", "ctc.yaml", "--out", "run")
    assert trained.status == 0, trained.err
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert last["wer"] < 0.05
    report = json.loads(cli("eval", "run", "--json").out)
    assert report["wer"] == pytest.approx(last["wer"])
    assert report["metrics"]["wer"]["count"] > report["metrics"]["loss"]["count"] / 2
    assert cli("pretrain", "ctc.yaml", "--dry-run").status == 0
    assert cli("bench", "ctc.yaml", "--seconds", 0.1).status == 0
    looked = json.loads(cli("attend", "run", "sounds/low_0.wav", "--json").out)
    assert (looked["answer"], [w["word"] for w in looked["times"]["words"]]) == ("low", ["low"])
    # the checkpoint alone writes down files, also beside longer ones
    names = [f"sounds/{name}_{index}.wav" for name in ("low", "middle", "high") for index in (0, 6)]
    said = [json.loads(line) for line in cli("predict", "run", *names).out.splitlines()]
    assert said == [{"input": n, "text": n.split("/")[1].split("_")[0]} for n in names]
    cli("eval", "run", "--predictions", "samples.jsonl")
    row = json.loads(Path("samples.jsonl").read_text().splitlines()[0])
    assert set(row["reference"].split()) <= {"low", "middle", "high"}
    again = json.loads(cli("eval", "--rescore", "samples.jsonl", "--json").out)
    for name, value in report["metrics"].items():
        assert again[name] == pytest.approx(value["value"]), name
        assert again["metrics"][name]["count"] == value["count"], name


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["task.type=classification"], 2,
         "classification reads label, and data.type: audio has frames, lengths, target"),
        (["model.frontend=null"], 2, "model.frontend: missing; the data has frames of sound"),
        (["model.frontend.kernel=4"], 2, "kernel: 4 has no middle; take an odd number"),
        (["model.token_types=2"], 2, "token_types and vocab_size are of tokens"),
        (["model.max_len=3"], 2, "model.max_len: 3 frames are fewer than the data's longest row"),
        (["data.hop=0.05"], 3, "lower model.frontend.stride or data.hop"),
        (["data={type: text, files: [abc.txt], context: 4, tokenizer: {type: bytes}}",
         "task.type=masked_lm"], 2,
         "model.frontend: it reads frames of sound, and the data has none"),
    ],
)  # fmt: skip
def test_ctc_options_that_do_not_fit_are_refused(
    changes: list[str], status: int, message: str, cli: Cli
) -> None:
    write()
    Path("abc.txt").write_text("abcdefg" * 100)
    result = cli(
        "pretrain", "ctc.yaml", "--out", "run", *(w for c in changes for w in ("--set", c))
    )
    assert result.status == status, result.err
    assert message in result.err
    assert not Path("run/checkpoints").exists()
