"""Every sample's training, evaluation and use on a GPU, and that a resumed run is the same run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, losses
from on_device import NAME, needed

pytestmark = needed
Cli = Callable[..., Any]
DEVICE = ("--device", NAME)
SMALL = "data.max_bytes=300_000"
SAMPLES: dict[str, tuple[str, ...]] = {
    "shakespeare_char": (),
    "structures": (),
    "hybrid": (SMALL,),
    "deepseek_like": (SMALL,),
    "mamba2": (SMALL,),
    "llama_like": (SMALL,),
    "gpt2": (SMALL, "train.batch_size=4", "train.micro_batch_size=2"),
    "quickstart": (),
    "digits_cnn": (),
    "mnist_cnn": ("data.root=data/mnist",),
    "multi30k_en_de": (),
    "spoken_digits": (),
    "spoken_digits_ctc": (),
    "spoken_digits_transformer": (),
    "sst2": ("train.patience=null",),
    "synthetic_recall": (),
    "docstrings": (),
}
"""Each with what makes it small, or names the data's place."""


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def good(result: Any) -> Any:
    assert result.status == 0, result.err[-3000:]
    return result


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_train_and_are_evaluated(
    name: str, cli: Cli, tmp_path: Path, data_root: Path
) -> None:
    (tmp_path / "data").symlink_to(data_root)
    spec = ROOT / "sample_configs" / f"{name}.yaml"
    short = ("train.epochs=null", "train.minutes=null", "train.steps=4", "train.log_every=1")
    more = ("train.validate_every=null", "train.validate_epochs=null")
    changed = sets(*short, *more, *SAMPLES[name])
    good(cli("pretrain", spec, "--out", "run", *DEVICE, *changed))
    assert len(losses(tmp_path / "run")) == 4
    scores = json.loads(good(cli("eval", "run", "--json", *DEVICE)).out)
    again = json.loads(good(cli("eval", "run", "--json", "--device", "cpu")).out)
    assert scores
    assert again.keys() == scores.keys()


@pytest.mark.parametrize("spec", ["decoder", "cnn"])
@pytest.mark.parametrize("compile", ["on", "off"])
def test_a_resumed_run_is_the_same_run(
    spec: str, compile: str, cli: Cli, decoder_spec: Path, cnn_spec: Path, tmp_path: Path
) -> None:
    own = sets(f"train.compile={compile}", "train.precision=bf16")
    file = decoder_spec if spec == "decoder" else cnn_spec
    good(cli("pretrain", file, "--out", "whole", *DEVICE, *own))
    good(cli("pretrain", file, "--out", "parts", *DEVICE, *own, *sets("train.steps=6")))
    good(cli("pretrain", "--resume", "--out", "parts", *DEVICE, *sets("train.steps=12")))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert parts.keys() == whole.keys()
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=1e-4 if step <= 6 else 5e-3)


def test_what_is_done_with_a_decoder(cli: Cli, decoder_spec: Path, tmp_path: Path) -> None:
    good(cli("pretrain", decoder_spec, "--out", "run", *DEVICE, *sets("train.steps=40")))
    words = ("run", "is all", "--max-tokens", "12", "--temperature", "0", "--device")
    here = good(cli("predict", *words, NAME)).out
    assert here == good(cli("predict", *words, "cpu")).out
    good(cli("predict", "run", "is all", "--max-tokens", "12", "--beams", "3", *DEVICE))
    for view in ((), ("--rollout",), ("--lens",), ("--html", "a.html"), ("--ablate", "auto")):
        good(cli("attend", "run", "attention is all", *view, *DEVICE))
    own = json.loads(good(cli("attend", "run", "attention is", "--json", *DEVICE)).out)
    theirs = json.loads(good(cli("attend", "run", "attention is", "--json", "--device", "cpu")).out)
    assert own.keys() == theirs.keys()
    lora = "adapter={type: lora, rank: 2, targets: ['*.out']}"
    good(cli("finetune", "--from", "run", "--out", "tuned", *DEVICE, *sets(lora, "train.steps=4")))
    if importlib.util.find_spec("torchao") is not None:
        nf4 = "adapter={type: lora, rank: 2, base: nf4, targets: ['*.out']}"
        good(
            cli("finetune", "--from", "run", "--out", "four", *DEVICE, *sets(nf4, "train.steps=4"))
        )
    good(cli("eval", "tuned", *DEVICE))
    good(cli("export", "run", "exported"))


@pytest.mark.parametrize("doing", ["training", "inference", "generation", "evaluation", "data"])
def test_bench(doing: str, cli: Cli, decoder_spec: Path) -> None:
    words = ("--doing", doing, "--seconds", "1", "--json", *DEVICE)
    found = json.loads(good(cli("bench", decoder_spec, *words, *sets("train.precision=bf16"))).out)
    assert found["benchmarks"][0]["median_s"] > 0


def test_bench_finds_batches_and_modes(cli: Cli, decoder_spec: Path) -> None:
    good(cli("bench", decoder_spec, "--seconds", "1", "--batch", "auto", *DEVICE))
    good(cli("bench", decoder_spec, "--seconds", "1", "--compile", "both", *DEVICE))
    good(cli("bench", decoder_spec, "--seconds", "1", "--precision", "all", *DEVICE))
