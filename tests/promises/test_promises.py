"""What parts promise: all parts of the package keep it, and each way to break it is found and told
with the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from conftest import Result
from test_plugins import SAMPLE
from torch import Tensor, nn
from zygote import Zygote

from bigmodel_cli import plugins
from bigmodel_cli.config import Options, required
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import sees_both_sides
from bigmodel_cli.models.block import BlockOptions
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.seq2seq import Seq2SeqOptions
from bigmodel_cli.parts import FFNS, MIXERS, NORMS, POSITIONS
from bigmodel_cli.parts.context import SINGLE_DOCUMENT, LayerContext, SequenceInfo
from bigmodel_cli.promises import REMEDIES, check_part, check_parts

Cli = Callable[..., Result]
GIVEN = {
    "num_heads": 2,
    "kv_rank": 8,
    "experts": 4,
    "head_dim": 4,
    "mixers": [{"type": "attention", "num_heads": 2}, {"type": "convolution"}],
}
PARTS = [
    (slot, name)
    for slot, table in (("mixer", MIXERS), ("ffn", FFNS), ("norm", NORMS), ("position", POSITIONS))
    for name in table
]
TABLES = {"mixer": MIXERS, "ffn": FFNS, "norm": NORMS, "position": POSITIONS}


@pytest.mark.parametrize(("slot", "name"), PARTS)
def test_every_part_of_the_package_keeps_its_promises(slot: str, name: str) -> None:
    options = TABLES[slot][name]
    values = {key: GIVEN[key] for key in required(options)} | (
        {"head_dim": 4} if name == "mamba2" else {}
    )
    for causal in (True, False) if slot == "mixer" else (True,):
        found = check_part(slot, options(**values), causal)
        assert [f.line() for f in found if f.kept is False] == []
        if causal and name != "none":
            assert {"shape", "saved", "gradients", "rows"} < {f.promise for f in found}
            assert slot != "mixer" or {"causal", "cache", "documents"} < {f.promise for f in found}


class Mean(nn.Module):
    """The mean of all positions so far, which keeps every promise; `fault` breaks one."""

    def __init__(self, dim: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.input, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.own = torch.randn(dim) if fault == "saved" else 1.0
        self.norm = nn.BatchNorm1d(dim) if fault == "rows in training" else None
        if fault == "gradients":
            self.unused = nn.Linear(dim, dim)

    def new_cache(self, batch: int, max_len: int) -> dict[str, Any]:
        return {}

    def forward(
        self,
        x: Tensor,
        sequence: SequenceInfo = SINGLE_DOCUMENT,
        cache: dict[str, Any] | None = None,
    ) -> Tensor:
        values = self.input(x)
        if self.fault == "gradients in part":
            values = values.detach()
        if cache is not None and self.fault != "cache":
            values = cache["values"] = torch.cat([cache["values"], values], 1) if cache else values
        seen = sequence.seen(x)
        if self.fault == "documents":
            seen = SequenceInfo(sequence.offset).seen(x)
        if self.fault == "causal":
            seen = torch.ones_like(seen)
        if self.fault == "window ahead" and seen.shape[1] > 1:
            seen = seen | seen.roll(-1, 1)
        seen = seen[..., -values.shape[1] :].to(values.dtype)
        y = seen @ values / seen.sum(-1, keepdim=True).clamp(min=1)
        if self.fault == "repeatable":
            y = y + torch.randn_like(y)
        if self.fault == "rows":
            y = y - y.mean(0)
        if self.norm is not None:
            y = self.norm(y.transpose(1, 2)).transpose(1, 2)
        if self.fault == "meta":
            y = y * float(y.abs().max())
        if self.fault == "order of the cache" and cache:
            # a list: its rows stay where they are
            cache["first"] = cache.get("first", list(values[:, 0]))
            y = y + torch.stack(cache["first"])[:, None]
        y = self.out(y) * self.own
        return y[:, -1:] if self.fault == "shape" else y


class MeanOptions(Options):
    """Options of the mean."""

    type: Literal["mean"] = "mean"
    fault: str = ""

    def build(self, layer: LayerContext) -> Mean:
        if self.fault == "builds":
            raise TypeError("a fault of its own")
        return Mean(layer.dim, self.fault)


class ConfessingOptions(MeanOptions):
    """The same with what it does not promise."""

    not_promised: ClassVar[tuple[str, ...]] = ("documents",)


def kept(options: Any, slot: str = "mixer", causal: bool = True) -> dict[str, bool | None]:
    return {finding.promise: finding.kept for finding in check_part(slot, options, causal)}


def test_a_part_without_fault_keeps_them_all() -> None:
    assert all(kept(MeanOptions()).values())
    assert all(kept(MeanOptions(), causal=False).values())


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("builds", "builds"),
        ("shape", "shape"),
        ("meta", "meta"),
        ("repeatable", "repeatable"),
        ("saved", "saved"),
        ("gradients", "gradients"),
        ("gradients in part", "gradients"),
        ("rows", "rows"),
        ("rows in training", "rows"),
        ("causal", "causal"),
        ("window ahead", "causal"),
        ("cache", "cache"),
        ("order of the cache", "cache"),
        ("documents", "documents"),
    ],
)
def test_a_broken_promise_is_reported_with_the_remedy(fault: str, promise: str) -> None:
    before = torch.random.get_rng_state()
    found = {f.promise: f for f in check_part("mixer", MeanOptions(fault=fault))}
    # a training's first weights stay as they are
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found[promise].kept is False
    assert REMEDIES[promise] in found[promise].text
    # others break several promises at once
    if fault in (
        "gradients",
        "gradients in part",
        "documents",
    ):
        assert [name for name, f in found.items() if f.kept is False] == [promise]


class Pointless(nn.Module):
    """A feed-forward network, norm or position that looks at other positions, or at none of what it
    is told.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, sequence: SequenceInfo = SINGLE_DOCUMENT) -> Tensor:
        return (
            x - x.mean(1, keepdim=True) + torch.arange(x.shape[1], device=x.device)[:, None]
        ) * self.weight


class PointlessOptions(Options):
    """Its options."""

    type: Literal["pointless"] = "pointless"

    def build(self, layer: Any, max_len: int = 0) -> Pointless:
        return Pointless(layer if isinstance(layer, int) else layer.dim)


@pytest.mark.parametrize(
    ("slot", "broken"),
    [("ffn", {"positions"}), ("norm", {"positions"}), ("position", {"cache", "documents"})],
)
def test_the_other_slots_have_promises_too(slot: str, broken: set[str]) -> None:
    assert {
        name for name, value in kept(PointlessOptions(), slot).items() if value is False
    } == broken


def test_a_promise_that_the_options_do_not_make_is_not_tried() -> None:
    assert kept(ConfessingOptions(fault="documents"))["documents"] is None
    assert False not in kept(ConfessingOptions(fault="documents")).values()


def test_a_name_that_is_no_promise_is_refused() -> None:
    class Misspelt(MeanOptions):
        not_promised: ClassVar[tuple[str, ...]] = ("document",)

    with pytest.raises(SpecError, match="'document' is not a promise; did you mean documents"):
        check_part("mixer", Misspelt())


def model(options: Any) -> DecoderOptions:
    """A decoder with this mixer, as a plugin's would stand in it."""
    block = BlockOptions.model_construct(
        **{n: f.default for n, f in BlockOptions.model_fields.items()} | {"mixer": options}
    )
    return DecoderOptions.model_construct(type="decoder", dim=14, blocks=[block])


def test_training_refuses_a_plugins_part_that_looks_ahead_and_says_what_is_not_promised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = ("mixer", Path("own.py"))
    monkeypatch.setattr(plugins, "_ORIGINS", {MeanOptions: origin, ConfessingOptions: origin})
    check_parts(model(MeanOptions()))
    assert capsys.readouterr().err == ""
    with pytest.raises(
        SpecError,
        match=r"(?s)model\.blocks\.0\.mixer: mean \(own\.py\) does not keep .*\n  causal: NOT KEPT",
    ):
        check_parts(model(MeanOptions(fault="causal")))
    check_parts(model(ConfessingOptions(fault="documents")))
    assert "mean does not promise 'documents'" in capsys.readouterr().err


def test_places_that_see_both_sides_are_known() -> None:
    """A mixer in an encoder is not asked to be causal."""
    assert not sees_both_sides(model(None), "model.blocks.0.mixer")
    other = Seq2SeqOptions.model_construct()
    assert sees_both_sides(other, "model.encoder.0.mixer")
    assert not sees_both_sides(other, "model.decoder.0.mixer")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Join options as if a plugin had them: parts are joined once in a process."""

    def join(*options: type[Options]) -> None:
        monkeypatch.setattr(
            plugins, "_ORIGINS", {own: ("mixer", Path("own.py")) for own in options}
        )
        monkeypatch.setattr(plugins, "name_plugins", lambda paths, option: None)

    return join


class AheadOptions(MeanOptions):
    """A mean of all positions."""

    type: Literal["ahead"] = "ahead"  # type: ignore[assignment]
    fault: str = "causal"


def test_the_command_has_a_line_for_each_promise_and_fails_where_one_is_not_kept(
    joined: Callable[..., None], cli: Cli
) -> None:
    joined(MeanOptions)
    good = cli("check", "own.py", "--json")
    assert good.status == 0, good.err
    (part,) = json.loads(good.out)["parts"]
    assert (part["slot"], part["type"], part["kept"]) == ("mixer", "mean", True)
    assert len(part["findings"]) == 10
    joined(MeanOptions, AheadOptions)
    bad = cli("check", "own.py")
    assert bad.status == 2
    rows = [re.split("  +", line) for line in bad.out.splitlines()]
    assert ["mixer mean", "causal", "kept"] in rows
    assert ["mixer ahead", "gradients", "kept"] in rows
    (said,) = (row[3] for row in rows if row[:3] == ["mixer ahead", "causal", "NOT KEPT"])
    assert said.startswith("the first 1 positions change where later ones do: it looks ahead;")
    assert bad.err == "bigmodel: own.py: not kept: ahead: causal, ahead: cache, ahead: documents\n"


def test_training_with_a_part_that_looks_ahead_writes_nothing(
    decoder_spec: Path, plain_zygote: Zygote
) -> None:
    Path("ahead.py").write_text(
        SAMPLE.read_text().replace(
            "seen = sequence.seen(x)", "seen = torch.ones_like(sequence.seen(x))"
        )
    )
    change = ("--set", "model.blocks.0.mixer=running_mean")
    result = plain_zygote.run("pretrain", decoder_spec, "--plugin", "ahead.py", *change)
    assert result.status == 2
    assert (
        "model.blocks.0.mixer: running_mean (ahead.py) does not keep what a mixer promises"
        in result.err
    )
    assert not Path("runs").exists()


class WideOptions(MeanOptions):
    """With an option that has no default."""

    width: int


def test_an_option_without_default_is_asked_for(joined: Callable[..., None], cli: Cli) -> None:
    joined(WideOptions)
    asked = cli("check", "own.py")
    assert asked.status == 2
    assert "own.py: WideOptions: width: missing" in asked.err
    assert "give a value to try it with: --set width=..." in asked.err
    assert cli("check", "own.py", "--set", "width=3").status == 0
    misspelt = cli("check", "own.py", "--set", "widht=3")
    assert misspelt.status == 2
    assert "no part of own.py has this option; did you mean width?" in misspelt.err
