"""Steps recorded as CUDA graphs are, to the bit, the steps that are taken without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import losses
from on_device import NAME, needed
from zygote import Zygote

from bigmodel_cli.train import graphs

pytestmark = [needed, pytest.mark.skipif(NAME != "cuda", reason="a CPU records nothing")]
Cli = Callable[..., Any]
OPTIMIZERS = {
    "adamw": "train.optimizer={type: adamw, lr: 0.003, weight_decay: 0.1}",
    "sgd": "train.optimizer={type: sgd, lr: 0.05}",
    "muon": "train.optimizer={type: muon, lr: 0.02, weight_decay: 0.1}",
}
LOOKS = """
from typing import Literal

from bigmodel_cli.parts.attention import AttentionOptions


class LooksOptions(AttentionOptions):
    \"\"\"Attention that asks the device for a number.\"\"\"

    type: Literal["looks"] = "looks"

    def build(self, layer):
        part = super().build(layer)
        part.register_forward_pre_hook(look)
        return part


def look(module, inputs):
    if not inputs[0].is_meta and float(inputs[0].sum()) > 1e9:
        raise ValueError("large")


PARTS = {"mixer": [LooksOptions]}
"""


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def trained(run: Cli, spec: Path, out: str, *words: str) -> tuple[dict[int, float], bytes, str]:
    """The losses of each step, the weights, and what was said."""
    short = sets("train.steps=30", "train.log_every=1", "train.precision=bf16")
    done = run("pretrain", spec, "--out", out, "--device", "cuda", *short, *words)
    assert done.status == 0, done.err[-3000:]
    weights = (Path(out) / "checkpoints" / "last" / "model.safetensors").read_bytes()
    return losses(Path(out)), weights, done.err


@pytest.fixture(autouse=True)
def however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "GAIN", float("inf"))  # beside other work no time means anything


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["decoder", "cnn"])
def test_recorded_steps_are_the_steps(
    kind: str, optimizer: str, compile: str, cli: Cli, decoder_spec: Path, cnn_spec: Path
) -> None:
    spec = decoder_spec if kind == "decoder" else cnn_spec
    own = sets(OPTIMIZERS[optimizer], f"train.compile={compile}", "train.max_grad_norm=0.5")
    one, weights, said = trained(cli, spec, "recorded", *own)
    assert "steps are recorded and repeated (train.cuda_graphs)" in said
    other, theirs, said = trained(cli, spec, "plain", *own, *sets("train.cuda_graphs=off"))
    assert "recorded" not in said
    assert one == other
    assert weights == theirs


def test_micro_batches_dropout_and_a_resume(cli: Cli, decoder_spec: Path) -> None:
    own = sets(
        "train.micro_batch_size=2", "model.dropout=0.2", "train.ema=0.9",
        "train.compile=off", "train.checkpoint_every=11",
    )  # fmt: skip
    one, weights, said = trained(cli, decoder_spec, "recorded", *own)
    assert "steps are recorded and repeated" in said
    other, theirs, _ = trained(cli, decoder_spec, "plain", *own, *sets("train.cuda_graphs=off"))
    assert (one, weights) == (other, theirs)
    more = sets("train.steps=11")
    trained(cli, decoder_spec, "parts", *own, *more)
    done = cli("pretrain", "--resume", "--out", "parts", *sets("train.steps=30"))
    assert done.status == 0, done.err[-3000:]
    again = (Path("parts") / "checkpoints" / "last" / "model.safetensors").read_bytes()
    assert again == weights


def test_what_asks_the_device_goes_on_without(plain_zygote: Zygote, decoder_spec: Path) -> None:
    run = plain_zygote.run  # a plugin joins a process for good
    Path("looks.py").write_text(LOOKS)
    text = decoder_spec.read_text()
    assert "type: attention" in text
    decoder_spec.write_text(text.replace("type: attention", "type: looks"))
    own = (*sets("train.compile=off"), "--plugin", "looks.py")
    one, weights, said = trained(run, decoder_spec, "asks", *own)
    why = "a part waits for the device, to see a number of it"
    assert f"steps are not recorded (train.cuda_graphs): {why}" in said
    other, theirs, _ = trained(run, decoder_spec, "plain", *own, *sets("train.cuda_graphs=off"))
    assert (one, weights) == (other, theirs)
