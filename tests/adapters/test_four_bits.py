"""Frozen matrices in 4 bits: outputs, gradients and runs are those of their values, written out."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests
from safetensors.torch import load_file
from torch import nn

from bigmodel_cli.adapters import ADAPTERS, Hollow, attach, bytes_of, is_quantized, quantize
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS, build

Cli = Callable[..., Result]
CODES = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
CODES += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
TEXT = DatasetInfo(vocab_size=40, context=12)
BLOCK = {"mixer": {"type": "attention", "num_heads": 3}, "norm": "rmsnorm", "ffn": "swiglu"}
MODEL = {"type": "decoder", "dim": 48, "blocks": [BLOCK, BLOCK]}


@pytest.fixture(autouse=True)
def torchao(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("torchao", reason="torchao is not installed")


def written_out(w: torch.Tensor) -> torch.Tensor:
    """A matrix (M, N) rounded to NF4 with scales of 8 bits, after the paper's section 3."""
    groups = w.double().reshape(-1, 64)
    scales = groups.abs().amax(1)
    nearest = (groups / scales[:, None])[..., None].sub(torch.tensor(CODES).double()).abs()
    centred = (scales - scales.mean()).view(-1, math.gcd(256, len(scales)))
    step = centred.abs().amax(1, keepdim=True) / 128
    scales = (centred / step).round().clamp(-128, 127) * step + scales.mean()
    return (torch.tensor(CODES).double()[nearest.argmin(-1)] * scales.view(-1, 1)).view(w.shape)


def model_of(kind: str, targets: list[str]) -> Any:
    torch.manual_seed(4)
    model = build(MODELS["decoder"].model_validate(MODEL), TEXT)
    options = {"type": kind, "rank": 3, "targets": targets, "base": "nf4"}
    attach(model, ADAPTERS[kind].model_validate(options).low_rank(), fill=True)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape)
    return model.train()


def passed(model: Any, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens = torch.randint(40, (3, 7), generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = model(tokens)
    y.float().square().sum().backward()
    return y.detach().float(), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", [["*"], ["*.qkv.q", "*.ffn.down"]], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_outputs_and_gradients_are_those_of_the_values(
    kind: str, targets: list[str], precision: str
) -> None:
    four, plain = model_of(kind, targets), model_of(kind, targets)
    exact = {n: p.detach().clone() for n, p in plain.named_parameters()}
    found = quantize(four)
    assert len(found.names) == 10  # qkv, out, up, gate, down: of two blocks
    own = dict(four.named_parameters())
    for name, p in plain.named_parameters():
        if name not in found.names:
            assert torch.equal(own[name], p)
            continue
        reference = written_out(exact[name])
        assert is_quantized(own[name])
        torch.testing.assert_close(own[name] + 0, reference.float(), rtol=1e-5, atol=1e-7)
        p.data.copy_(reference)
    (y, gradients), (expected, others) = passed(four, precision), passed(plain, precision)
    most = 1e-5 if precision == "fp32" else 2e-2
    assert (y - expected).abs().max() <= most * expected.abs().max()
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= most * others[name].norm(), name


def test_the_backward_pass_keeps_four_bits() -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(3)))
    layers.requires_grad_(False)
    found = quantize(layers)
    assert found.numbers == 3 * 256 * 256
    assert found.bytes == sum(map(bytes_of, layers.parameters())) < 0.52 * found.numbers + 300
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layers(torch.randn(2, 256, requires_grad=True)).sum().backward()
    assert sum(kept) < 256 * 256


def test_bits_are_those_of_torchao_and_do_not_depend_on_threads() -> None:
    from bigmodel_cli.adapters.four_bits import in_four_bits, library

    w = torch.randn(640, 640)
    theirs = library().to_nf4(w, 64, math.gcd(256, 6400))
    several: Any = in_four_bits(w)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        others: Any = in_four_bits(w)
    finally:
        torch.set_num_threads(before)
    for name in ("quantized_data", "quantized_scalers", "quantization_factor", "scaler_mean"):
        assert torch.equal(getattr(several.stored, name), getattr(theirs, name))
        assert torch.equal(getattr(several.stored, name), getattr(others.stored, name))


def test_a_weight_of_four_bits_cannot_be_written() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    quantize(layer)
    with pytest.raises(RuntimeError, match="cannot be written"):
        layer.weight.zero_()


def test_what_has_no_scale_stays_and_what_is_not_finite_is_refused() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(64, 8), "b": nn.Linear(5, 7), "c": nn.Linear(64, 8)})
    layers.requires_grad_(False)
    layers.get_submodule("a").weight.data[3] = 0
    assert quantize(layers).whole == ["a.weight", "b.weight"]
    layers.get_submodule("a").weight.data[3, 5] = math.nan
    with pytest.raises(Exception, match="not finite"):
        quantize(layers)


def words(base: Path, kind: str = "lora", **more: object) -> list[object]:
    adapter = f"{{type: {kind}, rank: 2, targets: ['*.qkv.q', '*.ffn'], base: nf4}}"
    options = {"adapter": adapter, "train.validate_every": 2, "train.optimizer.lr": 0.05, **more}
    found: list[object] = ["finetune", "--from", base]
    for name, value in options.items():
        found += ["--set", f"{name}={value}"]
    return found


def loss(found: Result) -> float:
    """The loss that `bigmodel eval --json` printed."""
    assert found.status == 0, found.err
    value: float = json.loads(found.out)["metrics"]["loss"]["value"]
    return value


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_its_resume_and_its_metrics(
    cli: Cli, base: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"train.precision": precision, "train.rewind": "{window: 2}"}
    whole = cli(*words(base, "dora", **more, **{"train.steps": 4}), "--out", "whole")
    assert whole.status == 0, whole.err
    assert re.search(r"adapter.base: \d+ frozen matrices of [\d,]+ numbers are held", whole.err)
    half = cli(*words(base, "dora", **more, **{"train.steps": 2}), "--out", "half")
    assert half.status == 0, half.err
    read: list[str] = []
    own: Callable[..., None] = Hollow.keep
    monkeypatch.setattr(Hollow, "keep", lambda *given: (read.append(given[1]), own(*given))[1])
    again = cli("finetune", "--resume", "--out", "half", "--set", "train.steps=4")
    assert again.status == 0, again.err
    assert f"adapter.base: {len(set(read))} frozen" in again.err  # each as it was read
    path = Path(whole.out.strip())
    assert digests(Path(again.out.strip())) == digests(path)
    assert all(".0.parts." in name for name in load_file(path / "model.safetensors"))
    lines = (path.parents[1] / "metrics.jsonl").read_text().splitlines()
    last = [r["val"]["loss"] for r in map(json.loads, lines) if "val" in r][-1]
    assert loss(cli("eval", path, "--json")) == pytest.approx(last, rel=1e-6)
    assert cli("predict", path, "a rose").status == 0


def test_merging_and_exporting(cli: Cli, base: Path) -> None:
    found = cli(*words(base, "lora", **{"train.steps": 3}), "--out", "run")
    assert found.status == 0, found.err
    path = found.out.strip()
    merged = cli("merge", path, "--out", "merged")
    assert merged.status == 0, merged.err
    assert "4 bits" in merged.err
    before, after = (loss(cli("eval", at, "--json")) for at in (path, "merged"))
    assert before == pytest.approx(after, rel=1e-5)
    stored = load_file(Path("merged") / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert not any("parametrizations" in name for name in stored)


def test_averages_and_measuring(cli: Cli, base: Path) -> None:
    more = {"train.average_last": 2, "train.steps": 4}
    found = cli(*words(base, "lora", **more), "--out", "run")
    assert found.status == 0, found.err
    assert Path(found.out.strip()).name == "average"
    found = cli("bench", "run", "--seconds", "0.1")
    assert found.status == 0, found.err
    assert "are held in" in found.err


def test_what_is_refused(cli: Cli, base: Path) -> None:
    found = cli(*words(base, "pissa"), "--out", "run")
    assert (found.status, "take type: lora" in found.err) == (2, True)
    found = cli(*words(base, "lora", **{"train.compile": "'on'"}), "--out", "run")
    assert (found.status, "train.compile: off" in found.err) == (2, True)
    adapter = "adapter={type: lora, rank: 2, targets: ['*.qkv'], base: nf4}"
    found = cli("pretrain", base.parents[2] / "base.yaml", "--set", adapter, "--out", "run")
    assert (found.status, "keeps the exact ones" in found.err) == (2, True)


def test_without_torchao(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    found = cli(*words(base), "--out", "run")
    assert found.status == 2
    assert found.err.endswith(
        "adapter.base: nf4 needs torchao, which is not installed: pip install 'bigmodel[quant]'\n"
    )
    assert "step 1/" not in found.err


def test_a_weight_moves_with_its_values_and_its_dtype() -> None:
    from bigmodel_cli.adapters import moved
    from bigmodel_cli.adapters.four_bits import on_device, values

    layers = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64)).bfloat16().requires_grad_(False)
    quantize(layers)
    kept: Any = layers[0].weight
    again = on_device(kept, torch.device("cpu"))
    assert is_quantized(again)
    assert again.dtype == torch.bfloat16
    assert torch.equal(values(again), values(kept))
    before = values(kept)
    moved(layers.to(memory_format=torch.channels_last), torch.device("cpu"))
    assert is_quantized(layers[0].weight)
    assert torch.equal(values(layers[0].weight), before)
