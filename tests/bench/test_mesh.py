"""Plans of many processes against hand counts: Megatron-LM's (Shoeybi et al. 2019; Korthikanti et
al. 2022) and ZeRO's (Rajbhandari et al. 2020) formulas, worked out for one decoder in fp32.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Result

from bigmodel_cli.bench.calibrating import network
from bigmodel_cli.bench.mesh.axes import Axes, axes_of
from bigmodel_cli.bench.mesh.memory import memory_of
from bigmodel_cli.bench.mesh.traffic import exchanges
from bigmodel_cli.bench.paper import Paper, on_paper
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models.footprint import ACTIVATIONS
from bigmodel_cli.spec import load

Cli = Callable[..., Result]
C, V, T, B = 64, 160, 32, 4
"""Width, tokens of the vocabulary, positions and rows."""


def paper(blocks: int, axes: Axes, heads: int = 4, **train: Any) -> Paper:
    """A step of a GPT without biases and dropout, its embedding tied."""
    mixer = {"type": "attention", "num_heads": heads, "bias": False}
    ffn = {"type": "gelu", "hidden": 4 * C, "bias": False}
    norm = {"type": "layernorm", "bias": False}
    block = {"repeat": blocks, "mixer": mixer, "ffn": ffn, "norm": norm}
    model = {
        "type": "decoder",
        "dim": C,
        "blocks": [block],
        "norm": norm,
        "position": {"type": "none"},
        "tie_embeddings": True,
    }
    values = {
        "model": model,
        "task": {"type": "causal_lm"},
        "info": {"vocab_size": V, "context": T},
        "batch": B,
    }
    spec, info = network(values, "fp32", "contiguous")
    spec = spec.model_copy(update={"train": spec.train.model_copy(update=train)})
    return on_paper(spec, info, "fp32", "contiguous", B, axes=axes)


def test_what_stays_is_divided_by_tensor_and_then_by_shard() -> None:
    kept = paper(2, Axes(shard=8, tensor=2)).kept
    # of a block 3 C^2 + C^2 + 4 C^2 + 4 C^2, of which each of 16 has a part; norms by 8
    numbers = 2 * (12 * C * C / 16 + 2 * C / 8) + V * C / 16 + C / 8
    assert kept["weights"] == kept["gradients"] == 4 * numbers
    assert kept["optimizer state"] == 8 * numbers
    assert kept["averages"] == 0


def test_rows_that_do_not_divide_are_filled_up() -> None:
    # 64 rows in 3 parts: 22 of them
    kept = paper(1, Axes(shard=3)).kept
    rows = 22 * C + 64 * C + 86 * C + 22 * 4 * C + 54 * C + 3 * 22
    assert kept["weights"] == 4 * rows


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_activations_of_a_block_are_those_that_its_layers_read(tensor: int) -> None:
    """In units of B T C numbers: the inputs of both norms, what they give to two layers; queries,
    keys and values, what attention gives, the hidden layer before and after gelu.
    """
    found = [paper(n, Axes(tensor=tensor)).moments[0][ACTIVATIONS] for n in (3, 4)]
    whole, divided = 4, 3 + 1 + 4 + 4
    inverse, sums = 2 * B * T, B * 4 * T / tensor  # of norms; log-sums of attention
    numbers = (whole + divided / tensor) * B * T * C + inverse + sums
    assert found[1] - found[0] == pytest.approx(4 * numbers, rel=0.005)


def sent(found: Paper, passes: int = 1) -> dict[tuple[str, str], tuple[float, float]]:
    """(bytes, exchanges) by kind and axis."""
    every = exchanges(found.traffic, passes)
    return {(e.kind, e.axis): (e.bytes, e.calls) for e in every}


BLOCK, EMBEDDING = 12 * C * C + 2 * C, V * C
"""Numbers of weights."""


def test_rings_of_whole_gradients_and_of_weights_in_parts() -> None:
    whole = 4 * (2 * BLOCK + EMBEDDING + C)
    assert sent(paper(2, Axes(replicate=4))) == {
        ("gradients summed", "replicate"): (2 * 3 / 4 * whole, 1)
    }
    # two blocks come twice, what is outside them once
    gathered = 4 * (4 * BLOCK + EMBEDDING + C)
    parts = sent(paper(2, Axes(shard=4)), passes=3)
    assert parts["weights gathered", "shard"] == (3 * 3 / 4 * gathered, 3 * 5)
    assert parts["gradients summed", "shard"] == (3 * 3 / 4 * whole, 3 * 3)
    both = sent(paper(2, Axes(replicate=2, shard=4)))
    assert both["gradients summed", "replicate"] == (2 * 1 / 2 * whole / 4, 3)


def test_weights_that_stay_are_gathered_once() -> None:
    from bigmodel_cli.parallel import SharingOptions

    found = paper(2, Axes(shard=4), parallel=SharingOptions(reshard=False))
    whole = 4 * (2 * BLOCK + EMBEDDING + C)
    assert sent(found)["weights gathered", "shard"] == (3 / 4 * whole, 3)
    assert found.most["gathered weights"] > paper(2, Axes(shard=4)).most["gathered weights"]


def test_sums_of_activations_are_four_a_block() -> None:
    found = [sent(paper(n, Axes(tensor=4))) for n in (3, 4)]
    key = "activations summed", "tensor"
    rows = 4 * B * T * C
    assert found[1][key][0] - found[0][key][0] == 4 * 2 * 3 / 4 * rows
    assert found[1][key][1] - found[0][key][1] == 4
    # beside the blocks': the embedding, the gradient of the head's input, three numbers a row and
    # the largest
    assert found[0][key][0] - 12 * 2 * 3 / 4 * rows == 2 * 3 / 4 * (2 * rows + 4 * 4 * B * T)


def test_gathered_weights_and_whole_gradients_are_of_a_block_at_a_time() -> None:
    found = paper(4, Axes(shard=4))
    outer, block = 4 * (EMBEDDING + C), 4 * BLOCK
    # a block's weights, and the buffer through which the next one's come
    assert found.most["gathered weights"] == outer + 2 * block
    # a block's gradients and the buffer in which they are summed, beside that of the last norm;
    # that of the tied embedding is there at the end
    assert found.most["whole gradients"] == 4 * C + 2 * block
    assert found.moments[2]["gradients"] <= 4 * (4 * BLOCK + EMBEDDING + C) / 4


def test_several_passes_keep_gradients_from_the_first_on() -> None:
    found = paper(2, Axes())
    one, two = (memory_of(found, Axes(), passes, 0, 1e9) for passes in (1, 2))
    assert two.peak - one.peak <= two.stays["gradients"]
    assert two.peak >= sum(two.stays.values()) + found.moments[0][ACTIVATIONS]
    assert one.passes == one.peak - one.kept


LLAMA = ROOT / "sample_configs" / "clusters" / "llama_70b.yaml"


def test_seventy_billion_weights_in_512_parts() -> None:
    spec, info = load(LLAMA), DatasetInfo(vocab_size=128256, context=8192)
    found = on_paper(spec, info, "bf16", "contiguous", 1, "cuda", Axes(shard=64, tensor=8))
    # ZeRO: 16 bytes of a weight (fp32, its gradient and two moments), over all
    assert sum(found.kept.values()) == pytest.approx(16 * 70.55e9 / 512, rel=0.001)


BAD = {
    "shard": "write --mesh shard=64,tensor=8",
    "shard=0": "shard=0; the least is 1",
    "shards=2": "shards is not one of replicate, shard, tensor; did you mean shard?",
    "shard=2,shard=4": "shard is named twice",
    "shard=9999999,tensor=8": "the most are 1,048,576",
}


@pytest.mark.parametrize("given", BAD)
def test_meshes_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(SpecError) as error:
        axes_of(given)
    assert BAD[given] in str(error.value)


def test_a_mesh_is_shown_as_text_json_and_rows(cli: Cli, decoder_spec: Path) -> None:
    given = [str(decoder_spec), "--dry-run", "--mesh", "shard=2", "--on", "h100"]
    result = cli("pretrain", *given, "--csv", "mesh.csv")
    assert result.status == 0, result.err
    for words in ("memory of a process", "weights gathered", "beside the passes", "it fits: "):
        assert words in result.out
    rows = list(csv.DictReader(io.StringIO(Path("mesh.csv").read_text())))
    found = json.loads(cli("pretrain", *given, "--json").out)
    assert found["mesh"] == {"replicate": 1, "shard": 2, "tensor": 1}
    kinds = found["memory_bytes"]["kinds"]
    own = {row["name"]: float(row["bytes"]) for row in rows if row["part"] == "memory"}
    assert own == {name: kind["most"] for name, kind in kinds.items()}
    assert sum(kind["at_peak"] for kind in kinds.values()) == found["memory_bytes"]["peak"]
    assert {row["name"] for row in rows if row["part"] == "step"} == set(found["parts_s"])
    assert not Path("runs").exists()


def test_options_of_a_mesh_without_one_are_refused(cli: Cli, decoder_spec: Path) -> None:
    spec = str(decoder_spec)
    for given, words in (
        (["--mesh", "shard=2"], "--mesh has no effect on a training; it is for --dry-run"),
        (["--dry-run", "--on", "h100"], "--on has no effect on a dry run without --mesh"),
        (["--dry-run", "--mesh", "shard=2", "--on", "h10"], "--on h10 is not one of this, h100"),
    ):
        result = cli("pretrain", spec, *given)
        assert (result.status, words in result.err) == (2, True), result.err


def test_a_mesh_is_refused_by_what_training_refuses_it_by(cli: Cli, decoder_spec: Path) -> None:
    from bigmodel_cli.assemble import build_on_meta
    from bigmodel_cli.bench.mesh.traffic import PaperTeam, Traffic
    from bigmodel_cli.shares import divide
    from bigmodel_cli.train.setup import open_run

    opened = open_run(load(decoder_spec))
    with pytest.raises(SpecError) as error:
        divide(build_on_meta(opened.spec, opened.data.info), PaperTeam(16, Traffic()))
    given = [str(decoder_spec), "--dry-run", "--on", "h100"]
    result = cli("pretrain", *given, "--mesh", "tensor=16")
    assert result.status == 2
    assert str(error.value).splitlines()[0] in result.err
    few = cli("pretrain", *given, "--mesh", "replicate=4096")
    assert few.status == 2
    assert "samples of a batch are too few for 4,096 devices" in few.err
    exact = cli("pretrain", *given, "--mesh", "shard=2", "--set", "train.deterministic=true")
    assert "train.deterministic: true is not for weights that are divided" in exact.err


def test_what_does_not_fit_is_shown_and_refused(cli: Cli, decoder_spec: Path) -> None:
    given = [str(decoder_spec), "--dry-run", "--on", "t4", "--mesh", "replicate=2"]
    wide = ["--set", "model.dim=65536", "--set", "train.micro_batch_size=2"]
    result = cli("pretrain", *given, *wide)
    assert result.status == 2, result.err
    assert "it does not fit: " in result.out
    assert "--mesh replicate 2: a process needs about" in result.err
