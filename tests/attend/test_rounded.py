"""What attend says of a model that runs in bf16, where a view has no test, and what it imports."""

from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, Result
from looks import made

from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.page import page
from bigmodel_cli.attend.terminal import Style, show
from bigmodel_cli.device import autocast
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.parts.contract import Attends
from bigmodel_cli.parts.watched import AttentionCall

Cli = Callable[..., Result]
TEXT = "a rose is a rose"


def test_in_bf16_the_difference_is_that_of_rounding_and_is_said_to_be(base: Path, cli: Cli) -> None:
    """The kernel rounds exp(s - max) and what it returns to bf16: so does this formula."""
    words = ("--set", "train.precision=bf16")
    assert cli("pretrain", base / "spec.yaml", "--out", "half", *words).status == 0
    found = cli("attend", "half", TEXT, "--device", "cpu")
    assert found.status == 0, found.err
    assert "(bf16)" in " ".join(found.out.split("\n\n")[0].split())
    assert "(bf16)" not in cli("attend", base, TEXT, "--device", "cpu").out
    loaded = load_checkpoint(Path("half"), "cpu", tell=lambda text: None)
    gaps = []

    def each(name: str, part: Attends, call: AttentionCall) -> None:
        q, k, v, got = (x[0].double().numpy() for x in (call.q, call.k, call.v, call.output))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
        power = np.exp(scores - scores.max(-1, keepdims=True))
        exact = power @ v / power.sum(-1, keepdims=True)
        # half a unit of 8 bits for the weights, and half of one for the output
        bound = 2.0**-8 * (power @ np.abs(v) / power.sum(-1, keepdims=True)) + 2.0**-8 * abs(exact)
        assert (np.abs(exact - got) <= bound).all()
        gaps.append(np.abs(exact - got).max())

    with torch.no_grad(), autocast(loaded.device, "bf16"), watch(loaded.model, each):
        loaded.model(torch.tensor([[5, 0, 3, 7, 4, 5, 0, 1, 2]]))
    assert len(gaps) == 2
    assert min(gaps) > 1e-6


def test_a_page_says_to_what_its_kernel_rounds() -> None:
    look = made()
    half = replace(look, layers=[replace(each, rounded="bf16") for each in look.layers])
    assert "(bf16)" in show(half, 100, 40, Style())
    assert "of the kernel's output, rounded to bf16" in page(half)
    assert "kernel's output, rounded" not in page(look)


def test_a_baseline_without_a_test_of_the_map_is_refused(cli: Cli) -> None:
    Path("p").mkdir()
    for pitch in (200, 400, 800):
        for number in range(3):
            samples = 9000 * np.sin(2 * np.pi * pitch * np.arange(2000) / 8000 + number)
            with wave.open(f"p/{pitch}_{number}.wav", "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(samples.astype("<i2").tobytes())
    spec = r"""
model: {type: cnn, layers: [{type: conv, channels: 4, kernel: 3}, {type: adaptive_pool, size:
  1}, {type: flatten}, {type: dense, units: classes}]}
data: {type: audio, files: [p], pattern: '(?P<pitch>\d+)_\d\.wav$', targets: [pitch], rate: 8000,
  seconds: 0.2, mels: 8, window: 0.02, hop: 0.01, val_fraction: 0.34}
task: {type: regression}
train: {steps: 2, batch_size: 2, precision: fp32, optimizer: {lr: 0.01}}
"""
    Path("r.yaml").write_text(spec, encoding="utf-8")
    found = cli("pretrain", "r.yaml", "--out", "r")
    assert found.status == 0, found.err
    assert cli("attend", "r", "p/400_1.wav").status == 0
    for baseline in ("blur", "mean"):
        found = cli("attend", "r", "p/400_1.wav", "--baseline", baseline)
        assert found.status == 2
        assert "there is no test: leave --baseline out" in found.err


def test_pytorchs_compiler_is_not_imported(base: Path) -> None:
    code = (
        "import sys; from bigmodel_cli.__main__ import run; status = run(sys.argv[1:]);"
        " print(status, 'torch._dynamo' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "attend", str(base), TEXT, "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 False"
